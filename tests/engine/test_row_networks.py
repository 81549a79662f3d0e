"""Which methods, teachers and data a network that classifies rows of lanes takes."""

import pytest

from segkd.config.schema import RunConfig
from segkd.engine.peers import Peers
from segkd.engine.setup import assemble
from segkd.engine.trainer import Trainer
from segkd.errors import ConfigError
from segkd.runtime import Runtime

SIZE = [64, 96]
ROWS = {"size": SIZE, "rows": 6, "cells": 12, "hidden": 16}
STUDENT = {"arch": "row_anchor", "encoder": "tu-test_resnet", "options": ROWS}
SEGMENTATION = {"arch": "enet"}
DATA = {"name": "lanes", "size": SIZE, "train_images": 4, "val_images": 2, "test_images": 2}
DATA |= {"crop": SIZE, "batch_size": 2, "workers": 0}


def parts(methods=None, student=STUDENT, teachers=None, data=None, **changes):
    losses = {"row_cells": {}} if student["arch"] == "row_anchor" else {"cross_entropy": {}}
    keys = {"steps": 2, "data": data or DATA, "student": student, "methods": methods or {}}
    keys |= {"teachers": teachers or {}, "task": {"losses": losses}} | changes
    return assemble(RunConfig.model_validate(keys), Runtime.start("cpu"))


@pytest.mark.parametrize("method", ["kd", "cwd", "dist", "byot", "unix"])
def test_methods_that_compare_maps_are_refused(method):
    with pytest.raises(ConfigError, match=f"methods.{method}: .*classifies rows.*Use ld"):
        parts({method: {}}, teachers={"main": SEGMENTATION})


@pytest.mark.parametrize("method", ["ld", "at", "fitnets", "pkd"])
def test_ld_and_methods_of_features_are_taken(method):
    assert parts({method: {}}, teachers={"main": SEGMENTATION}).student.rows


@pytest.mark.parametrize("method", ["dml", "kdcl"])
def test_peers_that_classify_rows_are_refused(method):
    built = parts({method: {"peers": {"second": STUDENT}}}, SEGMENTATION)
    with pytest.raises(ConfigError, match=rf"methods\.{method}\.peers\.second: .*rows of lanes"):
        Peers(built.objective.methods)


@pytest.mark.parametrize("method", ["freekd", "maskd"])
def test_tokens_that_no_task_loss_teaches_are_refused(method):
    config = RunConfig.model_validate(
        {
            "steps": 20,
            "data": DATA,
            "student": STUDENT,
            "methods": {method: {"tap": "stage3"} if method == "maskd" else {}},
            "teachers": {"main": SEGMENTATION},
            "task": {"losses": {"row_cells": {}}},
        }
    )
    runtime = Runtime.start("cpu")
    with pytest.raises(ConfigError, match="no task loss of this run is of maps"):
        Trainer(config, assemble(config, runtime), runtime)


def test_a_teacher_of_rows_teaches_rows_only():
    teachers = {"main": STUDENT}
    assert parts({"ld": {}}, teachers=teachers).student.rows
    with pytest.raises(ConfigError, match=r"methods\.kd: reads the teacher's logits as a map"):
        parts({"kd": {}}, SEGMENTATION, teachers)
    assert parts({"fitnets": {}}, SEGMENTATION, teachers)


def test_an_ensemble_has_no_rows():
    teachers = {"a": STUDENT, "b": STUDENT, "both": {"ensemble": ["a", "b"]}}
    with pytest.raises(ConfigError, match=r"teachers\.both\.ensemble: 'a' classifies rows"):
        parts({"ld": {"teacher": "both"}}, teachers=teachers)


def test_its_data_has_lanes_with_an_identity():
    with pytest.raises(ConfigError, match="with an identity, which dataset 'streets'"):
        keys = {"name": "streets", "size": SIZE, "train_images": 2, "val_images": 2}
        keys |= {"crop": SIZE, "batch_size": 2, "workers": 0}
        parts(data=keys)
