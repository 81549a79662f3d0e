"""Lane files of other detectors as labels of a CULane tree, and numbers that no lane has."""

import numpy as np
import pytest
from lane_trees import lane, put_frame, put_image, put_lines, put_list
from pydantic import ValidationError
from toy_run import toy_config

from segkd.api import train
from segkd.data.check import check_dataset
from segkd.data.culane import CULane, CULaneConfig
from segkd.data.unlabeled import labels_as_told
from segkd.errors import DataError


@pytest.fixture
def drive(tmp_path):
    """Image 0 is annotated with four lanes, image 1 is not; a detector found two in both."""
    root, found = tmp_path / "drive", tmp_path / "found"
    put_frame(root, "d/0.jpg")
    put_image(root / "d/1.jpg")
    for number in range(2):
        put_lines(found / f"d/{number}.lines.txt", [lane(50), lane(110)])
    put_list(root, "train_gt.txt", ["/d/0.jpg /laneseg_label_w16/d/0.png 1 1 1 1", "/d/1.jpg"])
    return root, found


def lanes_in(dataset, index):
    return [one is not None for one in dataset.read(index).lanes]


def test_they_label_images_without_annotation(drive):
    root, found = drive
    dataset = CULane(CULaneConfig(name="culane", root=root, pseudo_lines=found), "train")
    assert lanes_in(dataset, 0) == [True] * 4
    assert lanes_in(dataset, 1) == [False, True, True, False]
    assert dataset.flags(1) is None and dataset.where(1).startswith(str(found))


def test_they_may_replace_annotations(drive):
    root, found = drive
    config = CULaneConfig(name="culane", root=root, pseudo_lines=found, pseudo_for="all")
    assert lanes_in(CULane(config, "train"), 0) == [False, True, True, False]
    # the score keeps the annotation
    assert len(CULane(config, "train").annotation(0).lanes) == 4
    with pytest.raises(DataError, match="the annotation is missing"):
        CULane(config, "train").annotation(1)


def test_alone_they_need_no_list_and_empty_files_have_no_lane(drive):
    root, found = drive
    (found / "d/0.lines.txt").write_text("")
    config = CULaneConfig(name="culane", root=root, pseudo_lines=found, pseudo_for="all")
    assert lanes_in(CULane(config, "all"), 0) == [False] * 4
    assert check_dataset(CULane(config, "all")).ok


@pytest.mark.parametrize("kind", ["missing", "all"])
def test_a_run_trains_on_them(drive, tmp_path, kind):
    root, found = drive
    put_list(root, "val_gt.txt", ["/d/0.jpg /laneseg_label_w16/d/0.png 1 1 1 1"])
    own = {"name": "culane", "root": str(root), "pseudo_lines": str(found), "pseudo_for": kind}
    data = {**own, "batch_size": 2, "workers": 0, "crop": [32, 48]}
    train(toy_config(tmp_path / kind, data=data, steps=2))
    assert (tmp_path / kind / "summary.json").is_file()


def test_optional_labels_may_be_theirs(drive):
    root, found = drive
    put_image(root / "d/2.jpg")
    put_list(root, "train.txt", ["/d/0.jpg", "/d/1.jpg", "/d/2.jpg"])
    (root / "list/train_gt.txt").unlink()
    own = {"name": "culane", "root": root, "pseudo_lines": found, "labels": "optional"}
    dataset = CULane(CULaneConfig(**own), "train")
    told = labels_as_told(dataset, dataset.config)
    assert [told.read(index).label is None for index in range(3)] == [False, False, True]


def test_a_missing_one_is_told(drive):
    root, found = drive
    (found / "d/1.lines.txt").unlink()
    with pytest.raises(
        DataError, match=r"it has no pseudo label .*1\.lines\.txt, and no .*--points lines`"
    ):
        CULane(CULaneConfig(name="culane", root=root, pseudo_lines=found), "train").read(1)
    with pytest.raises(ValidationError, match="needs `pseudo_lines: FOLDER`"):
        CULaneConfig(name="culane", root=root, pseudo_for="all")


@pytest.mark.parametrize("number", ["1e308", "-1e308", "1e20"])
def test_points_far_away_are_an_error_of_the_check(tmp_path, number):
    root = tmp_path / "drive"
    put_frame(root, "d/0.jpg")
    path = root / "d/0.lines.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([f"{lines[0]}{number} 30", *lines[1:]]) + "\n")
    report = check_dataset(CULane(CULaneConfig(name="culane", root=root), "all"))
    (finding,) = [one for one in report.findings if "far away" in one.text]
    assert finding.level == "error" and "lane 1 has 1 points" in finding.text


def test_a_name_with_blanks_is_read_from_a_list(tmp_path):
    root = tmp_path / "drive"
    put_frame(root, "my drive/a b.jpg")
    put_list(
        root, "train_gt.txt", ["/my drive/a b.jpg /laneseg_label_w16/my drive/a b.png 1 1 1 1"]
    )
    dataset = CULane(CULaneConfig(name="culane", root=root), "train")
    assert dataset.flags(0) == (1, 1, 1, 1) and np.isfinite(dataset.read(0).image).all()
