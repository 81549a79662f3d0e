import subprocess
import sys

import numpy as np
import pytest
from pydantic import ValidationError

from segkd.data.cityscapes import CLASSES
from segkd.errors import DataError
from segkd.registry import datasets
from segkd.synthetic.lanes import Lanes
from segkd.synthetic.scenes import classes as ids
from segkd.synthetic.scenes.camera import Camera
from segkd.synthetic.scenes.dice import Dice
from segkd.synthetic.scenes.draw import Canvas
from segkd.synthetic.scenes.scene import draw_scene
from segkd.synthetic.scenes.thing import BACK, FRONT, Thing
from segkd.synthetic.scenes.weather import KINDS, Weather
from segkd.synthetic.streets import Streets

SPLITS = ("train", "val", "teacher", "teacher_val")


def streets(split="train", **keys):
    return Streets(Streets.Config(**keys), split)


@pytest.fixture(scope="module")
def scenes():
    dataset = streets(size=(64, 128))
    return [dataset.read(index) for index in range(80)]


def test_registered():
    assert datasets.get("streets") is Streets


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 64), (64, 1), (3, 200)])
def test_the_smallest_images_are_drawn_in_any_weather(size):
    for weather in KINDS:
        dataset = streets(size=size, weather=[weather], train_images=4)
        assert {dataset.read(index).image.shape for index in range(4)} == {(*size, 3)}
    roads = Lanes(Lanes.Config(size=size, train_images=24), "train")
    assert {roads.read(index).image.shape for index in range(24)} == {(*size, 3)}


def test_equal_index_gives_equal_bytes():
    one, two = streets().read(7), streets().read(7)
    assert np.array_equal(one.image, two.image) and np.array_equal(one.label, two.label)
    assert one.name == "train_000007"


def test_another_process_draws_the_same():
    code = (
        "import hashlib; from segkd.synthetic.streets import Streets;"
        "s = Streets(Streets.Config(), 'val').read(3);"
        "print(hashlib.sha256(s.image.tobytes() + s.label.tobytes()).hexdigest())"
    )
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True).stdout}
    runs.add(subprocess.run([sys.executable, "-c", code], capture_output=True).stdout)
    assert len(runs) == 1 and len(runs.pop()) > 60


def test_order_of_reading_changes_nothing():
    dataset = streets()
    first = dataset.read(4).image
    dataset.read(9)
    assert np.array_equal(dataset.read(4).image, first)


def test_no_scene_is_in_two_splits_or_worlds():
    labels = [
        streets(split, size=(32, 64), seed=seed).read(index).label.tobytes()
        for split in SPLITS
        for seed in (0, 1)
        for index in range(4)
    ]
    assert len(set(labels)) == len(labels)


def test_pictures_are_what_samples_must_be(scenes):
    known = {*range(len(CLASSES)), 255}
    for sample in scenes:
        assert sample.image.shape == (64, 128, 3) and sample.image.dtype == np.uint8
        assert sample.label.shape == (64, 128) and sample.label.dtype == np.uint8
        assert set(np.unique(sample.label).tolist()) <= known
        assert sample.image.flags.c_contiguous and sample.label.flags.c_contiguous
        assert sample.image.std() > 3


def test_every_class_is_seen_in_some_scenes(scenes):
    seen = np.zeros(256)
    for sample in scenes:
        seen[np.unique(sample.label)] += 1
    rare = {name: seen[number] for number, name in enumerate(CLASSES) if seen[number] < 5}
    assert not rare
    assert 0 < seen[255] < len(scenes)


def test_class_ids_are_those_of_cityscapes():
    wrong = [n for i, n in enumerate(CLASSES) if getattr(ids, n.upper().replace(" ", "_")) != i]
    assert not wrong


def test_sky_is_above_the_horizon_and_road_below():
    for index in range(30):
        key, rows = (0, 0, index), 64
        _, label = draw_scene(key, (rows, 128))
        horizon = Camera.sample(Dice((*key, 0))).horizon * rows
        assert not (label[int(horizon) + 2 :] == ids.SKY).any()
        assert not (label[: int(horizon) - 1] == ids.ROAD).any()


def test_the_same_scene_at_twice_the_size():
    for index in range(6):
        _, small = draw_scene((0, 0, index), (64, 128))
        image, large = draw_scene((0, 0, index), (128, 256))
        assert image.shape == (128, 256, 3)
        assert (large[1::2, 1::2] == small).mean() > 0.95


@pytest.mark.parametrize("size", [(1, 1), (33, 47), (90, 60)])
def test_any_size(size):
    image, label = draw_scene((0, 0, 1), size)
    assert image.shape == (*size, 3) and label.shape == size


def test_lengths_follow_the_config():
    keys = {"train_images": 5, "val_images": 3, "teacher_images": 7}
    assert [len(streets(split, **keys)) for split in SPLITS] == [5, 3, 7, 3]


def test_unknown_split_names_the_splits():
    with pytest.raises(DataError, match=r"'test'.*train, val, teacher, teacher_val"):
        streets("test")


def test_index_beyond_the_split():
    with pytest.raises(DataError, match=r"'val' has scenes 0 to 2, got 3.*data.val_images"):
        streets("val", val_images=3).read(3)
    with pytest.raises(DataError):
        streets("teacher").read(-1)


def test_index_beyond_teacher_val_names_its_key():
    with pytest.raises(DataError, match=r"data\.val_images"):
        streets("teacher_val", val_images=3).read(3)


def test_bad_size():
    with pytest.raises(ValidationError):
        streets(size=(0, 128))


def canvas(size=(100, 200)):
    made = Canvas(Camera(1.0, 1.5, 0.5), Weather.sample(Dice((1,))), size)
    made.pixels[..., 3] = ids.ROAD
    return made


def test_a_person_has_the_right_height_in_pixels():
    made, thing = canvas(), Thing(z=10.0)
    thing.panel((-0.5, 0.5), (0.0, 1.75), (90, 90, 90), ids.PERSON)
    made.paint([thing])
    rows, columns = np.nonzero(made.label() == ids.PERSON)
    # focal length 200 pixels: 1.75 m at 10 m are 35 pixels, 1 m is 20
    assert abs(np.ptp(rows) + 1 - 35) <= 1 and abs(np.ptp(columns) + 1 - 20) <= 1
    assert abs(rows.max() + 1 - 80) <= 1


def test_the_nearer_thing_hides_the_farther():
    made, near, far = canvas(), Thing(z=8.0), Thing(z=20.0)
    near.panel((-1, 1), (0, 2), (90, 90, 90), ids.CAR)
    far.panel((-1, 1), (0, 2), (90, 90, 90), ids.BUS)
    made.paint([near, far])
    assert not (made.label() == ids.BUS).any() and (made.label() == ids.CAR).any()


def test_faces_are_seen_from_their_front_only():
    for normal, seen in ((BACK, True), (FRONT, False)):
        made, thing = canvas(), Thing(z=10.0)
        corners = ((-1, 0, 0), (1, 0, 0), (1, 1, 0), (-1, 1, 0))
        thing.face(corners, (90, 90, 90), ids.CAR, normal)
        made.paint([thing])
        assert (made.label() == ids.CAR).any() == seen


def test_what_shimmers_through_a_fence_keeps_the_label_of_the_fence():
    made, thing = canvas(), Thing(z=10.0)
    made.pixels[..., :3] = 200
    corners = ((-1, 0, 0), (1, 0, 0), (1, 1, 0), (-1, 1, 0))
    thing.face(corners, (0, 0, 0), ids.FENCE, kind="glaze", detail=0.25)
    made.paint([thing])
    inside = made.label() == ids.FENCE
    assert inside.any() and made.image()[inside].min() > 100
    assert (made.image()[~inside] > 150).mean() > 0.98


def test_dice_are_uniform_and_repeat():
    dice, again = Dice((3, 1)), Dice((3, 1))
    numbers = [dice.uniform(2, 4) for _ in range(5000)]
    assert numbers == [again.uniform(2, 4) for _ in range(5000)]
    assert min(numbers) >= 2 and max(numbers) < 4 and abs(np.mean(numbers) - 3) < 0.05
    picks = [dice.weighted({"a": 3.0, "b": 1.0, "c": 0.0}) for _ in range(2000)]
    assert "c" not in picks and abs(picks.count("a") / 2000 - 0.75) < 0.04
    assert {dice.integer(1, 3) for _ in range(200)} == {1, 2, 3}
    assert dice.bytes(3, 5).shape == (3, 5)


def test_a_world_can_have_some_weather_alone():
    """At night scenes are darker than in the sun; streets, and so the labels of them, stay."""
    for index in range(4):
        night, sun = (streets("val", weather=[kind]).read(index) for kind in ("night", "sun"))
        assert night.image.mean() < sun.image.mean()
        assert ((night.label == ids.ROAD) == (sun.label == ids.ROAD)).mean() > 0.9
    every, given = streets("val").read(0), streets("val", weather=list(KINDS)).read(0)
    assert (every.image == given.image).all()


def test_unknown_weather_is_refused():
    with pytest.raises(ValidationError, match="fog"):
        streets("val", weather=["snow"])
