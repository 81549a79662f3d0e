"""The root of a data set holds label maps beside its images: these are no pictures."""

import cv2
import numpy as np
import pytest

from segkd.inference.media import open_source

TREES = {  # image and its label maps, as the public sets name them
    "cityscapes": (
        "leftImg8bit/val/a/a_000_019_leftImg8bit.png",
        "gtFine/val/a/a_000_019_gtFine_labelIds.png",
        "gtFine/val/a/a_000_019_gtFine_color.png",
    ),
    "camvid": ("images/0001TP_1.png", "labels/0001TP_1_L.png"),
    "segnet": ("train/0001.png", "trainannot/0001.png"),
    "voc": ("JPEGImages/2007_1.jpg", "SegmentationClass/2007_1.png"),
    "ade20k": ("images/training/ADE_1.jpg", "annotations/training/ADE_1.png"),
    "culane": ("driver_1/02.MP4/0.jpg", "laneseg_label_w16/driver_1/02.MP4/0.png"),
    "folder": ("photos/0.jpg", "ids/0.png"),
    "one folder": ("0.jpg", "0_mask.png"),
    "what predict wrote": ("drive/0.jpg", "found/labels/0.png", "found/overlays/0.jpg"),
}


def photograph(path, seed=0, grey=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (24, 32) if grey else (24, 32, 3)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def label_map(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.eye(24, 32, dtype=np.uint8))


def found(root):
    return [path.relative_to(root).as_posix() for path in open_source(root).files]


@pytest.mark.parametrize("name", TREES)
def test_label_maps_of_the_public_sets_are_passed_over_and_told(name, tmp_path, caplog):
    image, *maps = TREES[name]
    photograph(tmp_path / image)
    for one in maps:
        label_map(tmp_path / one)
    assert found(tmp_path) == [image]
    assert f"{len(maps)} files are label maps of other images" in caplog.text


def test_the_legend_of_an_earlier_prediction_is_no_image(tmp_path):
    photograph(tmp_path / "drive/0.jpg")
    photograph(tmp_path / "found/legend.png", 1)
    assert found(tmp_path) == ["drive/0.jpg", "found/legend.png"]  # of somebody else
    (tmp_path / "found/classes.json").write_text("[]")
    assert found(tmp_path) == ["drive/0.jpg"]


def test_what_only_looks_alike_is_taken(tmp_path, caplog):
    photograph(tmp_path / "left/0.png", 1)
    photograph(tmp_path / "right/0.png", 2)
    photograph(tmp_path / "infrared/0.png", 3, grey=True)  # as many values as a photograph
    photograph(tmp_path / "labels/7.png", 4)  # no other file is called so
    assert found(tmp_path) == ["infrared/0.png", "labels/7.png", "left/0.png", "right/0.png"]
    label_map(tmp_path / "masks/7.png")
    assert found(tmp_path / "masks") == ["7.png"]  # asked for by name
    assert caplog.text == ""
