from pathlib import Path

import cv2
import numpy as np
import pytest

from segkd.data.base import DataConfig
from segkd.data.check import check_dataset
from segkd.data.coco_stuff import LABEL_IDS, COCOStuff
from segkd.errors import DataError

# of the official list, ids from 1
OFFICIAL = {1: "person", 11: "fire hydrant", 13: "stop sign", 44: "bottle", 46: "wine glass"}
OFFICIAL |= {65: "bed", 67: "dining table", 70: "toilet", 72: "tv", 84: "book", 90: "toothbrush"}
OFFICIAL |= {92: "banner", 106: "clouds", 119: "flower", 149: "road", 169: "tree", 182: "wood"}


def write(root: Path, part: str, name: str, ids: np.ndarray) -> None:
    for folder, ending, array in (
        ("images", ".jpg", np.stack([ids] * 3, axis=-1)),
        ("stuffthingmaps", ".png", ids),
    ):
        (root / folder / part).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / folder / part / f"{name}{ending}"), array)


def opened(root: Path, split: str = "train") -> COCOStuff:
    return COCOStuff(DataConfig(name="coco_stuff", root=root), split)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    stored = (LABEL_IDS - 1).astype(np.uint8)
    write(tmp_path, "train2017", "000000000009", np.append(stored, 255)[None].astype(np.uint8))
    write(tmp_path, "val2017", "000000000139", np.full((2, 3), 0, np.uint8))
    return tmp_path


def test_stored_ids_become_the_171_classes(root):
    label = opened(root).read(0).label
    assert label.ravel().tolist() == [*range(171), 255]
    assert COCOStuff.classes[int(opened(root, "val").read(0).label[0, 0])] == "person"


def test_names_stand_at_their_official_ids():
    position = {number: at for at, number in enumerate(LABEL_IDS.tolist())}
    found = {number: COCOStuff.classes[position[number]] for number in OFFICIAL}
    assert found == OFFICIAL
    assert len(set(COCOStuff.classes)) == 171
    assert len({tuple(colour) for colour in COCOStuff.palette.tolist()}) == 171


def test_ids_that_no_image_has_are_refused(root):
    path = root / "stuffthingmaps/val2017/000000000139.png"
    cv2.imwrite(str(path), np.array([[11, 200]], np.uint8))  # street sign, and nothing
    with pytest.raises(DataError, match=r"000000000139\.png: values 11, 200"):
        opened(root, "val").read(0)
    cv2.imwrite(str(path), np.array([[0, 256, 511]], np.uint16))  # 0 and 255 as bytes
    with pytest.raises(DataError, match=r"000000000139\.png: values 256, 511 are not classes"):
        opened(root, "val").read(0)
    cv2.imwrite(str(path), np.full((2, 3, 3), (1, 2, 3), np.uint8))
    with pytest.raises(DataError, match="colours"):
        opened(root, "val").read(0)


def test_a_missing_split_shows_the_tree(root):
    with pytest.raises(DataError) as caught:
        opened(root / "nowhere")
    assert COCOStuff.expected_tree in str(caught.value)


def test_grey_images_are_read_and_checked(root):
    grey = np.full((2, 3), 90, np.uint8)
    cv2.imwrite(str(root / "images/val2017/000000000139.jpg"), grey)
    dataset = opened(root, "val")
    assert dataset.read(0).image.shape == (2, 3, 3)
    assert check_dataset(dataset).ok
