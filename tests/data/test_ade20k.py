from pathlib import Path

import cv2
import numpy as np
import pytest

from segkd.data.ade20k import ADE20K
from segkd.data.base import DataConfig
from segkd.data.check import check_dataset
from segkd.errors import DataError


def write(root: Path, part: str, name: str, ids: np.ndarray) -> None:
    for folder, ending, array in (
        ("images", ".jpg", np.stack([ids] * 3, axis=-1)),
        ("annotations", ".png", ids),
    ):
        (root / folder / part).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / folder / part / f"{name}{ending}"), array)


def opened(root: Path, split: str = "train") -> ADE20K:
    return ADE20K(DataConfig(name="ade20k", root=root), split)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, "training", "ADE_train_00000001", np.arange(151, dtype=np.uint8)[None])
    write(tmp_path, "validation", "ADE_val_00000001", np.full((2, 3), 13, np.uint8))
    return tmp_path


def test_ids_count_from_zero_and_zero_is_void(root):
    assert opened(root).read(0).label.ravel().tolist() == [255, *range(150)]
    label = opened(root, "val").read(0).label
    assert ADE20K.classes[int(label[0, 0])] == "person"


def test_names_and_colours_are_the_benchmarks():
    names, palette = ADE20K.classes, ADE20K.palette
    assert len(set(names)) == len(palette) == 150
    # a few lines of objectInfo150 (ids from 1) and of color150
    known = {1: "wall", 3: "sky", 21: "car", 45: "chest of drawers", 91: "airplane", 150: "flag"}
    assert {number: names[number - 1] for number in known} == known
    assert palette[[0, 2, 20, 149]].tolist() == [
        [120, 120, 120],
        [6, 230, 230],
        [0, 102, 200],
        [92, 0, 255],
    ]


def test_the_folder_in_the_archive_is_found(root, tmp_path_factory):
    above = tmp_path_factory.mktemp("above")
    (above / "ADEChallengeData2016").symlink_to(root)
    assert len(opened(above)) == 1


def test_a_missing_split_shows_the_tree(root):
    with pytest.raises(DataError) as caught:
        opened(root, "vla")
    assert ADE20K.expected_tree in str(caught.value) and "Did you mean 'val'" in str(caught.value)


def test_other_values_and_colours_are_refused(root):
    path = root / "annotations/validation/ADE_val_00000001.png"
    cv2.imwrite(str(path), np.full((2, 3), 151, np.uint8))
    with pytest.raises(DataError, match=r"ADE_val_00000001\.png: values 151"):
        opened(root, "val").read(0)
    cv2.imwrite(str(path), np.full((2, 3, 3), (1, 2, 3), np.uint8))
    with pytest.raises(DataError, match="colours"):
        opened(root, "val").read(0)


def test_the_check_knows_it(root):
    write(root, "training", "ADE_train_00000002", np.zeros((2, 3), np.uint8))
    (root / "annotations/training/ADE_train_00000001.png").unlink()
    report = check_dataset(opened(root))
    assert [Path(f.file).name for f in report.errors] == ["ADE_train_00000001.png"]
    assert any("all pixels are void" in f.text for f in report.findings)
