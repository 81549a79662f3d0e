from pathlib import Path

import cv2
import numpy as np
import pytest

from segkd.data.base import DataConfig
from segkd.data.camvid import CamVid
from segkd.errors import DataError


def write(root: Path, split: str, stem: str, ids: np.ndarray, ending: str = ".png") -> None:
    for folder, name, array in (
        (split, stem + ending, np.stack([ids] * 3, axis=-1)),
        (f"{split}annot", f"{stem}.png", ids),
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / folder / name), array)


def opened(root: Path, split: str = "train") -> CamVid:
    return CamVid(DataConfig(name="camvid", root=root), split)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    ids = np.arange(12, dtype=np.uint8).reshape(3, 4)
    write(tmp_path, "train", "b", ids)
    write(tmp_path, "train", "a", ids, ".jpg")
    return tmp_path


def test_void_becomes_the_ignore_index(root):
    dataset = opened(root)
    assert [dataset.read(i).name for i in range(2)] == ["a.jpg", "b.png"]
    assert dataset.read(1).label.ravel().tolist() == [*range(11), 255]
    assert len(dataset.classes) == len(dataset.palette) == 11


def test_lists_choose_and_order(root):
    lines = [f"/SegNet/CamVid/train/{n}.png /SegNet/CamVid/trainannot/{n}.png" for n in "ba"]
    (root / "train.txt").write_text("\n".join(lines) + "\n\n")
    assert [path.stem for path, _ in opened(root).pairs] == ["b", "a"]
    (root / "train.txt").write_text("/SegNet/CamVid/train/b.png\n")
    assert len(opened(root)) == 1
    (root / "train.txt").write_text("train/b.png\ntrain/zebra.png\n")
    with pytest.raises(DataError, match=r"train\.txt.*zebra"):
        opened(root)


@pytest.mark.parametrize(
    "line", ["img 1.png", "train/img 1.png", "img 1", "x/img 1.png\tannot/b.png", "img 1.png b.png"]
)
def test_lists_may_have_names_with_blanks(line, root):
    for folder, ending in (("train", "jpg"), ("trainannot", "png")):
        (root / folder / f"a.{ending}").rename(root / folder / f"img 1.{ending}")
    (root / "train.txt").write_text(f"{line}\nb 1 0\n")
    assert [path.stem for path, _ in opened(root).pairs] == ["img 1", "b"]
    (root / "train.txt").write_text("img 2.png\n")
    with pytest.raises(DataError, match="'img 2' and 0 other"):
        opened(root)


def test_a_missing_split_shows_the_tree(root):
    with pytest.raises(DataError) as caught:
        opened(root, "val")
    assert CamVid.expected_tree in str(caught.value)


def test_coloured_masks_are_refused(root):
    cv2.imwrite(str(root / "trainannot" / "b.png"), np.full((3, 4, 3), (1, 2, 3), np.uint8))
    with pytest.raises(DataError, match=r"b\.png.*colours"):
        opened(root).read(1)


@pytest.mark.real
@pytest.mark.parametrize(("split", "count"), [("train", 367), ("val", 101)])
def test_the_real_set(real_data, split, count):
    dataset = opened(real_data / "camvid", split)
    assert len(dataset) == count
    for index in range(0, count, 50):
        sample = dataset.read(index)
        assert sample.image.shape == (360, 480, 3) and sample.label.shape == (360, 480)
        assert set(np.unique(sample.label)) <= {*range(11), 255}
        assert (sample.label[-40:] == 3).mean() > 0.2  # road
