import numpy as np
import pytest

from segkd.data.base import DataConfig, Dataset, Sample
from segkd.data.cityscapes import CLASSES, PALETTE, Cityscapes, CityscapesConfig
from segkd.errors import DataError
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


def test_streets_become_a_cityscapes_tree(tmp_path):
    calls = []
    counts = {"train": 2, "teacher_val": 1}
    make_streets(tmp_path, counts, (32, 64), seed=5, progress=lambda *call: calls.append(call))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    for split, count in counts.items():
        drawn = Streets(Streets.Config(size=(32, 64), seed=5), split)
        back = Cityscapes(CityscapesConfig(name="cityscapes", root=tmp_path), split)
        assert len(back) == count
        for index in range(count):
            ours, theirs = drawn.read(index), back.read(index)
            assert np.array_equal(ours.image, theirs.image)
            assert np.array_equal(ours.label, theirs.label)
    with pytest.raises(DataError, match="tset"):
        make_streets(tmp_path, {"tset": 1}, (32, 64))
