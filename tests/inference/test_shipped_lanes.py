"""The lane network that ships, on real frames, as `segkd eval` scores it on another set."""

import os
from pathlib import Path

import pytest

import segkd
from segkd.errors import CheckpointError, ConfigError
from segkd.inference.lane_detector import LaneDetector
from segkd.metrics.culane import Counts, evaluate_image
from segkd.metrics.culane_text import read_lanes

ROOT = Path(os.environ.get("SEGKD_REAL_DATA", ""))
SHIPPED = "pretrained:lanes_fpn_efficientnet_lite0"
pytestmark = pytest.mark.real


def keys(name, folder, *more):
    return [f"data.name={name}", f"data.root={ROOT / folder}", "data.workers=0", *more]


def test_frames_are_scored_as_the_detector_sees_them():
    told = []
    segkd.evaluate(
        SHIPPED,
        overrides=keys("culane", "culane_sample", "data.val_split=all", "eval.limit=1"),
        tell=told.append,
    )
    assert "sees 590x1640 pixels" in told[0] and "trained on 144x480" in told[0]
    said = told[0].partition("shows them: ")[2].split()
    result = segkd.evaluate(
        SHIPPED, overrides=keys("culane", "culane_sample", "data.val_split=all", *said)
    )
    detect, total = LaneDetector(SHIPPED), Counts()
    for file in sorted((ROOT / "culane_sample").rglob("*.lines.txt")):
        found = detect(file.with_name(file.name.replace(".lines.txt", ".jpg")))
        total += Counts(*evaluate_image(read_lanes(file), [lane.points for lane in found]))
    assert result.score == pytest.approx(total.f1, abs=0.02) and total.f1 > 0.6, total


def test_as_many_lanes_as_the_student_has():
    overrides = keys("tusimple", "tusimple_sample", "data.val_split=label_data")
    with pytest.raises(CheckpointError, match=r"as many lanes as it has: data\.num_lanes=4$"):
        segkd.evaluate(SHIPPED, overrides=overrides)
    result = segkd.evaluate(
        SHIPPED,
        overrides=[*overrides, "data.num_lanes=4", "data.cut_top=72", "data.resize=[144,480]"],
    )
    assert result.score > 0.75


def test_a_folder_without_its_dataset_is_no_score_of_drawn_roads():
    own = f"data.root={ROOT / 'culane_sample'}"
    with pytest.raises(ConfigError, match=r"draws its images and reads no folder.*data\.name="):
        segkd.evaluate(SHIPPED, overrides=[own, "eval.limit=1"])
