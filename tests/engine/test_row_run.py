"""A network that classifies rows in the engine: trained, distilled, scored, exported, at work."""

import csv

import numpy as np
import pytest
import torch
from toy_lanes import save_student, toy_set
from toy_run import toy_config

import segkd
from segkd.engine.run import train_run
from segkd.errors import SegKDError
from segkd.export.student import export
from segkd.lanes import LaneDetector

STUDENT = {
    "arch": "row_anchor",
    "encoder": "tu-test_resnet",
    "options": {"size": [64, 160], "rows": 12, "span": [0.3, 0.95], "cells": 40, "hidden": 64},
}
DATA = {"name": "toy_lanes", "batch_size": 5, "workers": 0, "flip": 0.0, "scale": [1.0, 1.0]}
DATA |= {"resize": [64, 160], "crop": [64, 160]}
LOSSES = {"row_cells": {}, "row_similarity": {"weight": 0.05}, "row_shape": {"weight": 0.01}}


def row_config(out, **changes):
    usual = {"steps": 60, "data": DATA, "student": STUDENT, "task": {"losses": LOSSES}}
    usual |= {"optim": {"name": "adamw", "lr": 0.004}, "eval": {"every": 0}, "save_every": 60}
    return toy_config(out, **{**usual, **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Five images, learned by heart from labels and a teacher that finds all lanes."""
    root = tmp_path_factory.mktemp("rows")
    teacher, _ = save_student(root / "teacher")
    config = row_config(
        root / "run", teachers={"main": {"checkpoint": str(teacher)}}, methods={"ld": {}}
    )
    return root / "run", train_run(config)


def test_it_learns_and_finds_lanes(run):
    folder, summary = run
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for column in ("task/row_cells", "ld/ld", "ld/presence"):
        values = [float(row[column]) for row in rows if row.get(column)]
        assert values[-1] < 0.7 * values[0], column
    assert summary["score_name"] == "F1" and summary["score"] > 0.3
    assert segkd.evaluate(folder).score == summary["best_score"]


def test_teachers_alone_teach_it(tmp_path):
    """Without any label: positions and presence come from the teacher."""
    teacher, _ = save_student(tmp_path / "teacher")
    summary = train_run(
        row_config(
            tmp_path / "run",
            task={"weight": 0.0, "losses": LOSSES},
            teachers={"main": {"checkpoint": str(teacher)}},
            methods={"ld": {}},
        )
    )
    assert summary["score"] > 0.2


def test_a_detector_and_the_exported_file_find_the_same(run, tmp_path):
    folder, _ = run
    written = export(folder, tmp_path / "rows.onnx")
    image = toy_set().read(1).image
    own, exported = (LaneDetector(source)(image) for source in (folder, tmp_path / "rows.onnx"))
    assert written.path.exists() and [one.slot for one in own] == [one.slot for one in exported]
    assert own, "no lane was found"
    for one, other in zip(own, exported, strict=True):
        np.testing.assert_allclose(one.points, other.points, atol=0.05)
    with pytest.raises(SegKDError, match="labels no pixels"):
        export(folder, tmp_path / "labels.onnx", bake="labels")
    with pytest.raises(SegKDError, match="labels no pixels"):
        segkd.load_student(folder).predict(image)


def test_the_state_of_a_student_has_its_rows(run):
    folder, _ = run
    network = segkd.load_student(folder).network
    outputs = network(torch.zeros(1, 3, 64, 160, dtype=torch.uint8))
    assert outputs.rows == pytest.approx(np.linspace(0.3, 0.95, 12))
