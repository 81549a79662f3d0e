import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from pydantic import ValidationError

from segkd.commands.data import make
from segkd.data.culane import CULane
from segkd.data.lane_base import LaneDataset
from segkd.data.lane_files import LaneFiles
from segkd.data.reading import read_image
from segkd.errors import DataError
from segkd.evaluation.culane_files import Scorer
from segkd.metrics.culane import Rules
from segkd.registry import datasets
from segkd.synthetic.lanes import Lanes
from segkd.synthetic.make_lanes import make_lanes
from segkd.synthetic.roads.annotate import lanes_of
from segkd.synthetic.roads.categories import CATEGORIES, category_of
from segkd.synthetic.roads.course import Course, RoadCamera
from segkd.synthetic.roads.ground import Ground
from segkd.synthetic.roads.lines import Line
from segkd.synthetic.roads.scene import Scene, draw_road

SPLITS = ("train", "val", "test")
SMALL = (72, 200)


def lanes(split="train", **keys):
    return Lanes(Lanes.Config(**keys), split)


@pytest.fixture(scope="module")
def scenes():
    dataset = lanes(size=SMALL)
    return [dataset.read(index) for index in range(60)]


def test_registered():
    assert datasets.get("lanes") is Lanes and issubclass(Lanes, LaneDataset)


def test_equal_index_gives_equal_bytes_whatever_was_read_before():
    dataset = lanes(size=SMALL)
    first = dataset.read(7)
    dataset.read(8)
    again = dataset.read(7)
    assert np.array_equal(first.image, again.image) and np.array_equal(first.label, again.label)
    assert first.name == "train_000007"


def test_another_process_draws_the_same():
    code = (
        "import hashlib; from segkd.synthetic.lanes import Lanes;"
        "s = Lanes(Lanes.Config(), 'val').read(3);"
        "print(hashlib.sha256(s.image.tobytes() + s.label.tobytes()).hexdigest())"
    )
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True).stdout}
    runs.add(subprocess.run([sys.executable, "-c", code], capture_output=True).stdout)
    assert len(runs) == 1 and len(runs.pop()) > 60


def test_no_scene_is_in_two_splits_or_worlds():
    pictures = [
        lanes(split, size=(36, 100), seed=seed).read(index).image.tobytes()
        for split in SPLITS
        for seed in (0, 1)
        for index in range(4)
    ]
    assert len(set(pictures)) == len(pictures)


def test_samples_are_what_they_must_be(scenes):
    for sample in scenes:
        assert sample.image.shape == (*SMALL, 3) and sample.image.dtype == np.uint8
        assert sample.label.shape == SMALL and sample.label.dtype == np.uint8
        assert sample.image.flags.c_contiguous and sample.image.std() > 3
        assert len(sample.lanes) == 4
        shown = {slot + 1 for slot, lane in enumerate(sample.lanes) if lane is not None}
        assert set(np.unique(sample.label).tolist()) - {0} <= shown


def test_lanes_run_upwards_inside_the_picture(scenes):
    for lane in (lane for sample in scenes for lane in sample.lanes if lane is not None):
        assert lane.dtype == np.float32 and len(lane) >= 2
        assert (np.diff(lane[:, 1]) < 0).all()
        assert (lane >= 0).all() and (lane <= (SMALL[1] - 1, SMALL[0] - 1)).all()


def test_slots_are_in_order_on_every_row_and_the_car_is_between_the_inner_ones(scenes):
    for sample in scenes:
        own = [lane for lane in sample.lanes if lane is not None]
        for left, right in itertools.pairwise(own):
            low, high = max(left[-1, 1], right[-1, 1]), min(left[0, 1], right[0, 1])
            rows = np.linspace(low, high, 9) if low < high else np.array([])
            x = [np.interp(rows, lane[::-1, 1], lane[::-1, 0]) for lane in (left, right)]
            assert (x[0] < x[1]).all()
        left, right = sample.lanes[1:3]
        if left is not None and right is not None and left[0, 1] == right[0, 1]:
            assert left[0, 0] < SMALL[1] / 2 < right[0, 0]


def test_numbers_of_lanes_vary(scenes):
    numbers = {sum(lane is not None for lane in sample.lanes) for sample in scenes}
    assert numbers >= {0, 2, 3, 4}


@pytest.mark.parametrize("factor", [2, 3])
def test_lanes_scale_with_the_size(factor):
    large = (SMALL[0] * factor, SMALL[1] * factor)
    for index in range(30):
        scene = Scene.sample((0, 0, index))
        for one, other in zip(scene.lanes(SMALL), scene.lanes(large), strict=True):
            if one is None or other is None:
                continue  # a lane may just be tall enough at one of the sizes
            scaled = (other + 0.5) / factor - 0.5
            inside = scaled[(scaled[:, 1] < one[0, 1]) & (scaled[:, 1] > one[-1, 1])]
            x = np.interp(inside[:, 1], one[::-1, 1], one[::-1, 0])
            assert np.abs(x - inside[:, 0]).max(initial=0) < 0.25


def test_the_same_scene_at_twice_the_size():
    for index in range(5):
        small, _ = draw_road((0, 1, index), SMALL)
        large, _ = draw_road((0, 1, index), (2 * SMALL[0], 2 * SMALL[1]))
        mean = large.reshape(SMALL[0], 2, SMALL[1], 2, 3).mean((1, 3))
        assert np.abs(mean - small).mean() < 14


@pytest.mark.parametrize("size", [(1, 1), (33, 47), (90, 60)])
def test_any_size(size):
    image, own = draw_road((0, 0, 1), size)
    assert image.shape == (*size, 3) and len(own) == 4


def test_annotated_paint_is_brighter_than_the_asphalt_beside_it():
    profiles, size = [], (144, 400)
    dataset = lanes(size=size)
    for index in dataset.categories["normal"][:30]:
        sample = dataset.read(index)
        grey = sample.image.mean(2)
        for lane in (lane for lane in sample.lanes[1:3] if lane is not None):
            columns, rows = np.rint(lane[6:36].T).astype(int)
            fits = (columns > 14) & (columns < size[1] - 15)
            if fits.sum() > 5:
                rows, columns = rows[fits], columns[fits]
                profiles.append([grey[rows, columns + k].mean() for k in range(-14, 15)])
    profile = np.mean(profiles, 0)
    assert len(profiles) > 40
    assert abs(np.argmax(profile) - 14) <= 1  # the annotation is in the middle of the paint
    assert profile[14] - np.median(profile) > 10
    contrast = np.max(np.array(profiles)[:, 13:16], 1) - np.median(profiles, 1)
    assert np.mean(contrast > 3) > 0.6  # dashes, kerbs without a line


def test_the_label_follows_the_lanes(scenes):
    for sample in scenes:
        for slot in (1, 2):
            lane = sample.lanes[slot]
            if lane is not None:
                columns, rows = np.rint(lane[: len(lane) // 2].T).astype(int)
                assert (sample.label[rows, columns] == slot + 1).mean() > 0.9


def test_the_lane_width_follows_the_size():
    assert lanes(size=(590, 1640)).config.lane_width == 16
    assert lanes(size=(144, 400)).config.lane_width == lanes().config.lane_width == 4
    assert lanes(size=(144, 400), lane_width=9).config.lane_width == 9


def test_cut_rows_are_gone_from_image_label_and_lanes_but_not_from_the_annotation():
    whole, cut = lanes(size=SMALL), lanes(size=SMALL, cut_top=20)
    index = whole.categories["normal"][0]
    one, other = whole.read(index), cut.read(index)
    assert np.array_equal(one.image[20:], other.image)
    assert np.array_equal(one.label[20:], other.label)
    for a, b in zip(one.lanes, other.lanes, strict=True):
        assert (a is None) == (b is None)
        assert a is None or np.allclose(a - (0, 20), b)
    assert cut.annotation(index).size == SMALL
    present = [lane for lane in one.lanes if lane is not None]
    for a, b in zip(present, cut.annotation(index).lanes, strict=True):
        assert np.array_equal(a, b)


def test_categories_part_the_split_in_culanes_shares():
    dataset = lanes(train_images=3000)
    members = [index for name in CATEGORIES for index in dataset.categories[name]]
    assert sorted(members) == list(range(3000)) and list(dataset.categories) == list(CATEGORIES)
    total = sum(CATEGORIES.values())
    for name, number in CATEGORIES.items():
        assert abs(len(dataset.categories[name]) / 3000 - number / total) < 0.03


def test_what_a_category_promises():
    scene = {name: [] for name in CATEGORIES}
    for index in range(400):
        scene[category_of((0, 0, index))].append(Scene.sample((0, 0, index)))
    assert all(lane is None for s in scene["cross"] for lane in s.lanes(SMALL))
    assert all(s.weather.kind == "night" for s in scene["night"])
    assert not any(s.weather.kind == "night" for s in scene["normal"])
    assert all(s.weather.kind == "sun" for s in scene["shadow"])
    faint = [line.strength for s in scene["noline"] for b in s.road.boundaries for line in b.lines]
    assert max(faint) < 0.2

    def bend(name):
        return np.median([np.abs(np.diff(s.camera.course.slope)).max() for s in scene[name]])

    assert bend("curve") > 3 * bend("normal")
    seen = [sum(lane is not None for lane in s.lanes(SMALL)) for s in scene["noline"]]
    assert np.mean(np.array(seen) >= 2) > 0.9


def test_a_lane_on_a_straight_level_road_is_a_straight_line_to_the_vanishing_point():
    scene = Scene.sample((0, 0, lanes().categories["normal"][0]))
    z = scene.camera.course.z
    flat = Course(z, np.full_like(z, -scene.road.ego), 0 * z, 0 * z)
    camera = RoadCamera(1.0, 1.5, 0.4, flat, 1.0)
    for boundary, lane in zip(
        scene.road.slots(), lanes_of(scene.road, camera, (300, 600), 900.0), strict=True
    ):
        if lane is None:
            continue
        # By the pinhole: x − 300 = (side − ego) / height · (y − 120), in edge-based pixels
        x, y = lane.T + 0.5
        expected = 300 + (boundary.side - scene.road.ego) / 1.5 * (y - 120)
        inner = (lane[:, 0] > 0) & (lane[:, 0] < 599)
        assert np.abs(expected - x)[inner].max() < 0.05


def test_a_crest_ends_the_lanes():
    z = np.arange(0.0, 400.25, 0.25)
    rise = np.where(z > 30, -0.05 * (z - 30), 0.0)
    scene = Scene.sample((0, 0, lanes().categories["normal"][0]))
    course = Course(z, np.full_like(z, -scene.road.ego), rise, 0 * z)
    camera = RoadCamera(1.0, 1.2, 0.4, course, 1.0)
    assert 29 < camera.crest < 34
    highest = min(
        lane[:, 1].min()
        for lane in lanes_of(scene.road, camera, (300, 600), 900.0)
        if lane is not None
    )
    # The crest is 1.2 m below the lens and 30 m away: 600 · 1.2 / 30 = 24 rows under the horizon
    assert abs(highest + 0.5 - (0.4 * 300 + 24)) < 2.5
    assert camera.hidden(60.0) and not camera.hidden(20.0)


def level_ground(size=(60, 100)):
    z = np.arange(0.0, 400.25, 0.25)
    camera = RoadCamera(1.0, 1.5, 0.4, Course(z, 0 * z, 0 * z, 0 * z), 1.0)
    return Ground.seen(camera, size)


def test_a_stripe_covers_exactly_its_width():
    ground = level_ground()
    window = slice(0, ground.shape[0]), slice(0, ground.shape[1])
    cover = ground.stripe(-0.1, 0.2, window)
    assert np.allclose(cover.sum(1) * ground.step[:, 0], 0.3, atol=1e-3)
    rows, columns = ground.window(-0.1, 0.2)
    part = ground.stripe(-0.1, 0.2, (rows, columns))
    assert np.allclose(part.sum(), cover.sum(), rtol=1e-4)


def test_dashes_and_bands_keep_their_mean():
    ground = level_ground((600, 100))
    line = Line(0.0, 0.1, (255, 255, 255), 1.0, 0.0, 3.0, 12.0, 0.0)
    cover = ground.dashes(line, slice(0, ground.shape[0]))
    length = ((ground.far - ground.near) * cover).sum()
    near, far = ground.near.min(), ground.far.max()
    assert abs(length / (far - near) - 0.25) < 0.02
    assert abs(ground.between(10.0, 25.0).T @ (ground.far - ground.near) - 15.0).max() < 0.01
    table = np.ones((4800, 1)) * 7.0
    assert np.allclose(ground.bands(table), 7.0, atol=0.05)


def test_bad_keys_are_told():
    with pytest.raises(DataError, match=r"'all'.*train, val, test"):
        lanes("all")
    with pytest.raises(DataError, match=r"'val' has scenes 0 to 2, got 3.*data.val_images"):
        lanes("val", val_images=3).read(3)
    with pytest.raises(DataError, match=r"data\.test_images"):
        lanes("test").annotation(-1)
    for keys in ({"size": (0, 128)}, {"num_lanes": 6}, {"cut_top": 400}):
        with pytest.raises(ValidationError):
            lanes(**keys)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    config = Lanes.Config(size=SMALL, train_images=5, val_images=3, test_images=12)
    make_lanes(config, root / "made")
    return config, root / "made"


def test_a_made_tree_is_read_as_culane(tree):
    config, root = tree
    for split, number in (("train", 5), ("val", 3), ("test", 12)):
        found = CULane(CULane.Config(root=root, lane_width=config.lane_width, name="culane"), split)
        source = Lanes(config, split)
        assert len(found) == number
        for index in range(number):
            one, other = source.read(index), found.read(index)
            assert found.entry(index) == source.entry(index)
            assert np.abs(one.image.astype(int) - other.image).mean() < 6
            given = [lane for lane in one.lanes if lane is not None]
            for a, b in zip(given, found.annotation(index).lanes, strict=True):
                assert np.abs(a - b).max() < 1e-3
            if split != "test":
                assert np.array_equal(one.label, other.label)
                assert [a is None for a in one.lanes] == [b is None for b in other.lanes]
    assert found.categories == {name: own for name, own in source.categories.items() if own}


def test_a_made_tree_scores_full_against_itself(tree):
    _, root = tree
    entries = (root / "list" / "test.txt").read_text().split()
    result = Scorer(entries, root, rules=Rules(SMALL, lane_width=4)).score_files(root)
    assert result.total.fp == result.total.fn == 0 and result.total.tp > 10


def test_making_goes_on_and_never_mixes(tree):
    config, root = tree
    image = root / Lanes(config, "train").entry(2)
    before, kept = image.read_bytes(), root / Lanes(config, "train").entry(1)
    stamp = kept.stat().st_mtime_ns
    image.unlink()
    make_lanes(config.model_copy(update={"val_images": 4}), root)
    assert image.read_bytes() == before and kept.stat().st_mtime_ns == stamp
    assert len((root / "list" / "val_gt.txt").read_text().splitlines()) == 4
    with pytest.raises(DataError, match="another seed: 0, not 1"):
        make_lanes(config.model_copy(update={"seed": 1}), root)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not valid JSON"), ("[]", "says nothing of the"), ("{}", "another lane_width")],
)
def test_a_damaged_record_is_told(tmp_path, text, message):
    (tmp_path / "scenes.json").write_text(text)
    with pytest.raises(DataError, match=rf"{message}"):
        make_lanes(Lanes.Config(train_images=1, val_images=1, test_images=1), tmp_path)
    assert (tmp_path / "scenes.json").read_text() == text


def test_the_command_makes_culanes_size_unless_told_otherwise(tmp_path):
    for overrides, size in (([], [590, 1640]), (["data.size=[36,100]", "data.seed=3"], [36, 100])):
        out = tmp_path / str(size[0])
        make("lanes", overrides, out=out, train=2, val=1, cache=False)
        assert json.loads((out / "scenes.json").read_text())["size"] == size
        counts = [len((out / "list" / f"{split}.txt").read_text().split()) for split in SPLITS]
        assert counts == [2, 1, 1]


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(DataError, match="not empty"):
        make_lanes(Lanes.Config(train_images=1, val_images=1, test_images=1), tmp_path)


@pytest.mark.parametrize("tag", [1, 3, 6, 8])
@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
def test_sizes_are_those_of_images_turned_by_a_camera(tag, ending, tmp_path):
    """What is scored has the size of what the network sees."""
    from PIL import Image

    exif = Image.Exif()
    exif[0x112] = tag
    path = tmp_path / f"a.{ending}"
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    shown = LaneFiles.__new__(LaneFiles)
    shown.pairs = [(path, None)]
    assert shown.image_size(0) == read_image(path).shape[:2]
