import numpy as np
import pytest
from pydantic import ValidationError

from segkd.config.load import load_data
from segkd.data.lane_masks import painted
from segkd.data.reading import read_ids
from segkd.data.writing import write_image
from segkd.errors import ConfigError, DataError
from segkd.synthetic.lanes import Lanes
from segkd.synthetic.make import write_cityscapes
from segkd.synthetic.make_lanes import make_lanes
from segkd.synthetic.photographs import PhotographsConfig
from segkd.synthetic.roads import effects
from segkd.synthetic.roads.categories import category_of
from segkd.synthetic.roads.on_photographs import Photograph, paint_road, without_paint
from segkd.synthetic.scenes.dice import Dice
from segkd.synthetic.streets import Streets

SIZE = (96, 240)
SKY, ASPHALT = 200, 90


@pytest.fixture
def clear(monkeypatch):
    """No reflections, no text and no blur."""
    monkeypatch.setattr(effects, "windscreen", lambda image, dice: image)
    monkeypatch.setattr(effects, "motion", lambda image, camera, dice: image)


def street(*, marks: bool = False, traffic: bool = False) -> Photograph:
    """A flat grey road up to a point in the middle of a photograph."""
    tall, wide = 240, 480
    rows, columns = np.mgrid[:tall, :wide]
    road = np.abs(columns - wide / 2) < 1.6 * (rows - 100)
    image = np.where(road[..., None], ASPHALT, SKY).astype(np.uint8).repeat(3, 2)
    if marks:
        for lean in (-0.8, 0.0, 0.9):
            line = np.abs(columns - wide / 2 - lean * (rows - 100)) < 0.02 * (rows - 100)
            image[line & road & (rows % 40 < 25)] = 235
        image[190:196][road[190:196]] = 240  # a stop line
    hidden = np.zeros_like(road)
    if traffic:
        hidden[150:200, 150:330] = True
        image[hidden], road = (10, 20, 30), road & ~hidden
    return Photograph(image, road, hidden)


def scenes(photograph, number=30, category="normal", size=SIZE):
    made = [paint_road(photograph, category, size, Dice((7, i))) for i in range(number)]
    return [one for one in made if one is not None]


def is_paint(image):
    """Brighter than asphalt, and not sky: paint of any wear on the grey street."""
    grey = image.mean(2)
    return (grey > ASPHALT + 12) & (grey < SKY - 25)


def test_most_views_of_a_street_get_lanes_with_both_lines_of_the_ego_lane():
    made = scenes(street())
    assert len(made) >= 25
    for image, lanes in made:
        assert image.shape == (*SIZE, 3) and image.dtype == np.uint8 and len(lanes) == 4
        assert lanes[1] is not None and lanes[2] is not None
        for lane in lanes:
            if lane is not None:
                assert (np.diff(lane[:, 1]) < 0).all()  # from bottom to top
                assert (lane >= -0.5).all() and (lane <= np.array(SIZE)[::-1] - 0.5).all()


def test_lines_meet_where_the_road_ends(clear):
    for image, lanes in scenes(street()):
        on_road = np.flatnonzero((np.abs(image.mean(2) - ASPHALT) < 8).sum(1) > 4)
        (x0, y0), (x1, y1) = lanes[1][[0, -1]]
        (u0, v0), (u1, v1) = lanes[2][[0, -1]]
        lean, other = (x1 - x0) / (y1 - y0), (u1 - u0) / (v1 - v0)
        y = (u0 - x0 + lean * y0 - other * v0) / (lean - other)
        assert abs(y - on_road[0]) < 0.08 * SIZE[0]


def test_paint_lies_on_the_annotated_lanes_and_on_the_road_alone(clear):
    seen = 0
    for image, lanes in scenes(street(), category="arrow"):
        near = painted(lanes, SIZE, 19, curved=False) > 0
        paint = is_paint(image) & ~_edges_of_road(image)
        paint[int(0.8 * SIZE[0]) :] = False  # where double lines are far apart
        if paint.sum() > 20:
            seen += 1
            assert (paint & ~near).sum() <= 0.1 * paint.sum()
    assert seen > 8


def _edges_of_road(image):
    """(H, W) bool: pixels beside sky, where resizing mixes both."""
    import cv2

    sky = (image.mean(2) > SKY - 25).astype(np.uint8)
    return cv2.dilate(sky, np.ones((7, 7), np.uint8)) > 0


def test_traffic_hides_lines_and_lanes_go_on_behind_it(clear):
    crossed = 0
    for image, lanes in scenes(street(traffic=True)):
        car = (np.abs(image.astype(int) - (10, 20, 30)) < 6).all(2)
        label = painted(lanes, SIZE, 2, curved=False) > 0
        crossed += (car & label).sum() > 5
        if car.any():
            rows, columns = np.flatnonzero(car.any(1)), np.flatnonzero(car.any(0))
            assert car[rows[0] + 1 : rows[-1], columns[0] + 1 : columns[-1]].all()
    assert crossed > 10


def test_own_markings_are_removed_and_nothing_else_changes():
    marked, plain = street(marks=True), street()
    clean = without_paint(marked.image, marked.road)
    assert np.array_equal(clean[~marked.road], marked.image[~marked.road])
    before = np.abs(marked.image.astype(int) - plain.image)[marked.road]
    left = np.abs(clean.astype(int) - plain.image)[marked.road]
    assert before.max() > 100 and left.mean() < 0.1 * before.mean() and (left > 20).mean() < 0.01


def test_lit_by_what_lies_on_the_road(clear):
    dark = street()
    dim = Photograph((dark.image * 0.4).astype(np.uint8), dark.road, dark.traffic)
    for (bright, _), (less, _) in zip(scenes(dark), scenes(dim), strict=True):
        assert np.abs(less / 0.4 - bright).mean() < 6 or bright.max() == 255


def test_without_a_road_there_is_no_scene():
    photograph = street()
    nothing = np.zeros_like(photograph.road)
    assert (
        paint_road(Photograph(photograph.image, nothing, nothing), "normal", SIZE, Dice((1,)))
        is None
    )
    spot = nothing.copy()
    spot[230:, 200:210] = True
    assert (
        paint_road(Photograph(photograph.image, spot, nothing), "normal", SIZE, Dice((1,))) is None
    )


# As a part of the drawn set; streets are photographs that need no files.
def lanes(split="train", **keys):
    block = {"name": "streets", "size": [96, 192], "train_images": 6, **keys}
    return Lanes(Lanes.Config(size=SIZE, train_images=60, photographs=block), split)


def test_a_share_of_the_training_scenes_by_day_are_photographs():
    drawn, mixed = Lanes(Lanes.Config(size=SIZE, train_images=60), "train"), lanes(share=0.5)
    other = [i for i in range(60) if not np.array_equal(drawn.read(i).image, mixed.read(i).image)]
    assert 10 <= len(other) <= 30
    kinds = {category_of((0, 0, i)) for i in other}
    assert kinds <= {"normal", "crowd", "shadow", "noline", "arrow", "curve"}
    for split in ("val", "test"):
        plain = Lanes(Lanes.Config(size=SIZE), split)
        assert np.array_equal(plain.read(3).image, lanes(split).read(3).image)


def test_label_lanes_and_annotation_agree_and_repeat():
    dataset = lanes(share=1.0)
    for index in range(8):
        sample, again = dataset.read(index), lanes(share=1.0).read(index)
        assert np.array_equal(sample.image, again.image)
        slots = dataset.slots(index)
        assert np.array_equal(
            painted(slots, SIZE, dataset.config.lane_width, curved=False), sample.label
        )
        held = [lane for lane in slots if lane is not None]
        for one, other in zip(dataset.annotation(index).lanes, held, strict=True):
            assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("keys", "place", "text"),
    [
        ({"name": "strets"}, "name", "Did you mean 'streets'"),
        ({"name": "culane"}, "name", "has lanes"),
        ({"colour": 3}, "colour", "unknown key"),
        ({"shar": 0.3}, "shar", "Did you mean 'share'"),
        ({"share": 0}, "share", "greater than 0"),
        ({"train_images": 0}, "train_images", "greater than"),
    ],
)
def test_faults_of_the_block_are_found_with_the_config(keys, place, text):
    with pytest.raises(ValidationError, match=text) as caught:
        lanes(**keys)
    assert [one["loc"] for one in caught.value.errors()] == [("photographs", place)]


def test_a_key_that_the_dataset_misses_is_named():
    with pytest.raises(ValidationError, match="spec: Field required") as caught:
        Lanes.Config(photographs={"name": "folder"})
    assert [one["loc"] for one in caught.value.errors()] == [("photographs",)]


@pytest.mark.parametrize("key", ["resize", "crop", "cache", "on_error", "augment", "batch_size"])
def test_keys_of_training_would_change_nothing(key):
    values = {"resize": [8, 8], "crop": [4, 4], "on_error": "skip", "augment": []}
    with pytest.raises(ValidationError, match=rf"{key}\n +would change nothing: photographs are"):
        PhotographsConfig(name="streets", size=[32, 64], **{key: values.get(key, 1)})
    with pytest.raises(ConfigError, match=rf"data\.photographs\.{key}: .*remove it here"):
        load_data("lanes", [f"data.photographs={{name: streets, {key}: {values.get(key, 1)}}}"])


def test_a_stored_config_of_an_earlier_version_is_taken():
    block = {"name": "streets", "resize": [8, 8]}
    PhotographsConfig.model_validate(block, context={"stored": True})


def test_the_split_has_one_name():
    with pytest.raises(ValidationError, match="`split` names the images"):
        PhotographsConfig(name="streets", train_split="val")


def test_faults_of_the_set_are_told():
    with pytest.raises(DataError, match=r"no class 'raod'\. Did you mean 'road'"):
        lanes(road=["raod"])
    with pytest.raises(DataError, match="no split 'tain'"):
        Lanes(Lanes.Config(photographs={"name": "streets", "split": "tain"}), "train")
    missing = {"name": "camvid", "root": "/nowhere"}
    with pytest.raises(DataError, match=r"(?s)^data\.photographs: .*Set data\.photographs\.root="):
        Lanes(Lanes.Config(photographs=missing), "train")
    assert lanes(road=["sidewalk"]).read(0).image.shape == (*SIZE, 3)


def test_a_folder_of_drawn_scenes_does_not_go_on_with_photographs(tmp_path):
    few = {"size": SIZE, "train_images": 1, "val_images": 1, "test_images": 1}
    make_lanes(Lanes.Config(**few), tmp_path / "roads")
    block = {"name": "streets", "size": [96, 192], "train_images": 2, "share": 1.0}
    with pytest.raises(DataError, match="another number_of_photographs: nothing, not 2"):
        make_lanes(Lanes.Config(**few, photographs=block), tmp_path / "roads")


def test_photographs_that_have_become_others(tmp_path):
    """Flags in the lists are those of the masks that are there, and another number is refused."""
    photographs = Streets(Streets.Config(size=(96, 192), train_images=3), "train")
    write_cityscapes(photographs, tmp_path, "a")
    block = {"name": "cityscapes", "root": tmp_path, "split": "a", "share": 1.0}
    few = {"size": SIZE, "train_images": 12, "val_images": 1, "test_images": 1}
    config, out = Lanes.Config(**few, photographs=block), tmp_path / "roads"
    make_lanes(config, out)
    lists = (out / "list" / "train_gt.txt").read_text()
    road = next(tmp_path.glob("gtFine/a/*/*000000_*.png"))
    for path in tmp_path.glob("gtFine/a/*/*.png"):  # the same number of photographs, without roads
        write_image(path, np.zeros_like(read_ids(road)))
    now = Lanes(config, "train")
    flags = [[int(lane is not None) for lane in now.slots(index)] for index in range(12)]
    assert flags != [[*map(int, line.split()[2:])] for line in lists.splitlines()]
    make_lanes(config, out)
    assert (out / "list" / "train_gt.txt").read_text() == lists
    for path in tmp_path.glob("*/a/*/*000002_*.png"):
        path.unlink()
    with pytest.raises(DataError, match="another number_of_photographs: 3, not 2"):
        make_lanes(config, out)
