"""Labels that would let a run succeed without learning are told before the first step."""

import cv2
import numpy as np
import pytest
from pydantic import ValidationError
from resuming import make_trainer
from toy_run import toy_config

from segkd.data.arrays import Arrays
from segkd.data.folder import Folder, FolderConfig, FolderSpec
from segkd.data.survey import differing_sizes, survey
from segkd.errors import DataError

TWO = [{"name": "bg"}, {"name": "fg"}]


def folder(root, masks, sizes=(), **spec):
    """A Folder of these masks."""
    for number, mask in enumerate(masks):
        for kind in ("images", "masks"):
            (root / kind).mkdir(parents=True, exist_ok=True)
        shape = sizes[number] if sizes else mask.shape
        cv2.imwrite(str(root / f"images/{number:03d}.png"), np.zeros((*shape, 3), np.uint8))
        cv2.imwrite(str(root / f"masks/{number:03d}{spec.get('mask_ending', '.png')}"), mask)
    splits = {"train": {"images": "images", "masks": "masks"}}
    spec = FolderSpec.model_validate({"classes": TWO, "splits": splits, **spec})
    return Folder(FolderConfig(name="folder", root=root, spec=spec), "train")


def binary(value, count=3):
    mask = np.zeros((8, 8), np.uint8)
    mask[:2] = value
    return [mask] * count


def test_masks_of_0_and_255_are_refused_and_the_repair_works(tmp_path):
    (found,) = survey(folder(tmp_path, binary(255)))
    assert found.level == "error" and "no pixel of 'fg' in 3 labels, but 25.0 %" in found.text
    assert "{name: fg, ids: [255]} and `ignore: []`" in found.repair
    repaired = [{"name": "bg"}, {"name": "fg", "ids": [255]}]
    assert survey(folder(tmp_path, binary(255), classes=repaired, ignore=[])) == []
    assert survey(folder(tmp_path, binary(1))) == []
    assert survey(folder(tmp_path, binary(0))) == []  # no void: one class, and nothing hidden


def test_a_class_that_is_void_too_names_ignore():
    spec = {"classes": [{"name": "bg"}, {"name": "fg", "ids": [255]}]}
    spec["splits"] = {"train": {"images": "a"}}
    with pytest.raises(ValidationError, match=r"255 belongs to class 'fg'.*set `ignore: \[\]`"):
        FolderSpec.model_validate(spec)
    colors = [{"name": "bg", "colors": [[0, 0, 0]]}, {"name": "fg", "colors": [[1, 2, 3]]}]
    with pytest.raises(ValidationError, match=r"\[1, 2, 3\] belongs.*`ignore_colors: \[\[9, 9, 9"):
        FolderSpec.model_validate(
            spec | {"classes": colors, "masks": "colors", "ignore_colors": [[1, 2, 3], [9, 9, 9]]}
        )


def test_a_part_of_a_large_set_is_a_warning(tmp_path):
    dataset = folder(tmp_path, binary(255, 5))
    assert [one.level for one in survey(dataset, most=4)] == ["warning"]
    assert [one.level for one in survey(dataset, most=5)] == ["error"]


def test_all_void(tmp_path):
    (found,) = survey(folder(tmp_path, [np.full((8, 8), 255, np.uint8)] * 2))
    assert found.level == "error" and "no pixel of any class in 2 labels" in found.text


def test_masks_as_jpeg(tmp_path):
    dataset = folder(tmp_path, binary(1, 2), mask_ending=".jpg", undeclared="ignore")
    (found,) = survey(dataset)
    assert found.level == "warning" and found.file.endswith("000.jpg")
    assert (
        "is a JPEG, whose compression changes ids" in found.text and "1 others of 2" in found.text
    )


def test_a_training_is_refused_before_it_begins(tmp_path):
    label = np.zeros((32, 48), np.int64)
    label[:8] = 255
    pairs = Arrays([(np.zeros((32, 48, 3), np.uint8), label)] * 4, ("bg", "fg"))
    with pytest.raises(DataError, match="no pixel of 'fg'"):
        make_trainer(toy_config(tmp_path), train_set=pairs, val_set=pairs)
    methods_alone = toy_config(tmp_path, task={"weight": 0.0}, methods={"toy_self": {}})
    make_trainer(methods_alone, train_set=pairs, val_set=pairs)


def test_two_sizes_in_one_evaluation_batch(tmp_path):
    dataset = folder(tmp_path, binary(1), sizes=[(8, 8), (8, 8), (9, 8)])
    (found,) = differing_sizes(dataset, 2, None)
    assert (
        found.level == "error"
        and "000.png has 8x8" in found.text
        and "002.png has 9x8" in found.text
    )
    assert differing_sizes(dataset, 1, None) == differing_sizes(dataset, 2, 2) == []
