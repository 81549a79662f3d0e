import os
import signal

import numpy as np
import pytest

from segkd.commands.data import make
from segkd.data.base import DataConfig, Dataset, Sample
from segkd.data.cityscapes import CLASSES, PALETTE, Cityscapes, CityscapesConfig
from segkd.data.writing import write_image
from segkd.errors import ConfigError, DataError, Interrupted
from segkd.synthetic.make import make_streets, write_cityscapes
from segkd.synthetic.streets import Streets


class Toy(Dataset):
    name = "toy"
    classes, palette = CLASSES, PALETTE

    def __len__(self) -> int:
        return 3

    def read(self, index: int) -> Sample:
        rng = np.random.default_rng(index)
        values = np.array([*range(19), 255], np.uint8)
        image = rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)
        return Sample(image, rng.choice(values, (16, 20)), str(index))


def test_cityscapes_reads_back_what_was_written(tmp_path):
    toy, calls = Toy(DataConfig(name="toy"), "train"), []
    write_cityscapes(toy, tmp_path, "val", progress=lambda *call: calls.append(call))
    back = Cityscapes(CityscapesConfig(name="cityscapes", root=tmp_path), "val")
    assert len(back) == 3 and calls == [(1, 3), (2, 3), (3, 3)]
    for index in range(3):
        ours, theirs = toy.read(index), back.read(index)
        assert np.array_equal(ours.image, theirs.image)
        assert np.array_equal(ours.label, theirs.label)
    assert not list(tmp_path.rglob("*.part"))


def test_real_cities_are_not_mixed_with_ours(tmp_path):
    (tmp_path / "gtFine/val/bonn").mkdir(parents=True)
    with pytest.raises(DataError, match="bonn"):
        write_cityscapes(Toy(DataConfig(name="toy"), "val"), tmp_path, "val")


def test_other_classes_do_not_fit(tmp_path):
    toy = Toy(DataConfig(name="toy"), "val")
    toy.classes = ("a", "b")
    with pytest.raises(DataError, match="19 classes"):
        write_cityscapes(toy, tmp_path, "val")


def streets(**keys):
    few = {"size": (32, 64), "seed": 5, "train_images": 2, "val_images": 1}
    return Streets.Config(**{**few, **keys})


def test_streets_become_a_cityscapes_tree(tmp_path):
    calls, splits, config = [], ("train", "teacher_val"), streets(weather=["night"])
    make_streets(config, tmp_path, splits, progress=lambda *call: calls.append(call))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    for split, count in zip(splits, (2, 1), strict=True):
        drawn = Streets(config, split)
        back = Cityscapes(CityscapesConfig(name="cityscapes", root=tmp_path), split)
        assert len(back) == count
        for index in range(count):
            ours, theirs = drawn.read(index), back.read(index)
            assert np.array_equal(ours.image, theirs.image)
            assert np.array_equal(ours.label, theirs.label)
    by_day = Streets(streets(), "train").read(0)
    assert not np.array_equal(by_day.image, Streets(config, "train").read(0).image)
    with pytest.raises(DataError, match="tset"):
        make_streets(config, tmp_path, ["tset"])


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"seed": 6}, "another seed: 5, not 6"),
        ({"size": (16, 32)}, "another size"),
        ({"weather": ["fog"]}, "another weather"),
        ({"train_images": 1}, "1 more than these 1 images"),
        ({"val_images": 2, "train_images": 1}, "1 more than these 1 images"),
    ],
)
def test_a_folder_of_other_streets_is_left_alone(tmp_path, keys, message):
    make_streets(streets(), tmp_path)
    before = content(tmp_path)
    with pytest.raises(DataError, match=message):
        make_streets(streets(**keys), tmp_path)
    assert content(tmp_path) == before
    make_streets(streets(val_images=2), tmp_path)  # more of the same
    assert before.items() < content(tmp_path).items()


def test_nothing_is_written_beside_real_cities_of_a_later_split(tmp_path):
    (tmp_path / "gtFine/val/bonn").mkdir(parents=True)
    with pytest.raises(DataError, match="bonn"):
        make_streets(streets(), tmp_path)
    assert not content(tmp_path)


def test_a_folder_without_a_record_is_not_taken_for_ours(tmp_path):
    (tmp_path / "leftImg8bit").mkdir()
    with pytest.raises(DataError, match=r"is not empty, and has no scenes\.json"):
        make_streets(streets(), tmp_path)


@pytest.mark.parametrize(
    ("name", "overrides", "options", "message"),
    [
        ("streets", ["data.train_images=2"], {"train": 3}, "--train means data.train_images=3"),
        ("lanes", ["data.val_images=2"], {"val": 3}, "--val means data.val_images=3"),
        ("streets", ["data.teacher_images=2"], {}, "data.teacher_images would change nothing"),
        ("streets", ["data.flip=0"], {}, "data.flip would change nothing: `segkd data make str"),
        ("lanes", ["data.resize=[8,8]"], {}, "data.resize would change nothing"),
        ("lanes", ["data.cut_top=8"], {}, "data.cut_top would change nothing"),
        ("culane", ["data.crop=[8,8]"], {}, "data.crop would change nothing"),
        ("voc", ["data.batch_size=1"], {}, "data.batch_size would change nothing"),
        ("cityscapes", ["data.resize=[8,8]"], {"cache": True}, "data.resize would change nothing"),
        ("streets", ["data.name=lanes"], {}, "data.name=lanes is not 'streets'"),
    ],
)
def test_keys_that_change_nothing_are_refused(tmp_path, name, overrides, options, message):
    given = {"out": None, "train": None, "val": None, "cache": False, **options}
    with pytest.raises(ConfigError, match=message):
        make(name, overrides, **given)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_stopped_says_how_to_go_on(tmp_path, monkeypatch, number):
    def stopped(path, image):
        if len(content(tmp_path)) == 5:  # the record and two scenes
            os.kill(os.getpid(), number)
        write_image(path, image)

    monkeypatch.setattr("segkd.synthetic.make.write_image", stopped)
    options = {"out": tmp_path, "train": 4, "val": 1, "cache": False}
    told = r"streets -> .*: 3 of 5 images are left; .* The same command draws all of them anew"
    with pytest.raises(Interrupted, match=told) as caught:
        make("streets", ["data.size=[16,32]"], **options)
    assert caught.value.exit_code == 128 + number
    monkeypatch.undo()
    make("streets", ["data.size=[16,32]"], **options)
    assert len(Cityscapes(CityscapesConfig(name="cityscapes", root=tmp_path), "train")) == 4


def test_the_command_takes_numbers_as_options_or_keys(tmp_path):
    keys = ["data.size=[16,32]", "data.val_images=1", "data.weather=[night]"]
    make("streets", keys, out=tmp_path, train=2, val=None, cache=False)
    made = Cityscapes(CityscapesConfig(name="cityscapes", root=tmp_path), "train")
    assert len(made) == 2 and len(list(tmp_path.glob("gtFine/val/*/*.png"))) == 1
    night = Streets(streets(size=(16, 32), seed=0, weather=["night"]), "train")
    assert np.array_equal(made.read(0).image, night.read(0).image)
