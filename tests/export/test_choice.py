"""Which network of a run with peers is exported."""

import shutil

import pytest
import torch
from exported import toy_onnx
from toy_run import CLASSES, ToyData, toy_config

import segkd
from segkd.commands.export import default_path
from segkd.config.schema import ModelConfig
from segkd.engine.run_folder import RunFolder
from segkd.errors import CheckpointError, ConfigError
from segkd.evaluation.evaluator import Result
from segkd.export.choice import best_network
from segkd.models.build import build_network
from segkd.models.onnx_network import OnnxNetwork

EQUAL, WIDE = {"arch": "toy"}, {"arch": "toy", "options": {"width": 8}}


def result(score):
    """Of two classes, with this IoU each."""
    right = round(1000 * score)
    wrong = 1000 - right
    matrix = torch.tensor([[2 * right, wrong], [wrong, 2 * right]])
    return Result(matrix, CLASSES[:2], 1)


def test_exported_files_are_no_students(tmp_path):
    for name in ("student.onnx", "student.pt2"):
        with pytest.raises(ConfigError, match=rf"{name} is an exported file\. Give the checkpoint"):
            best_network(name)
    pytest.importorskip("onnxruntime")
    with pytest.raises(ConfigError, match=r"\.onnx is exported already"):
        segkd.export(OnnxNetwork(toy_onnx()), tmp_path / "x.onnx")


@pytest.fixture
def run(tmp_path):
    """A folder with the checkpoints of these networks and scores."""

    def make(**networks):
        config = toy_config(tmp_path / "run")
        folder, data = RunFolder(config), ToyData(config.data, "val")
        folder.open()
        for name, (model, score) in networks.items():
            network = build_network(ModelConfig.model_validate(model), len(CLASSES))
            peer = "" if name == "student" else f"dml.{name}"
            folder.save_best(network, data, step=1, result=result(score), peer=peer)
        folder.close()
        return tmp_path / "run"

    return make


def test_the_student_if_it_is_the_best(run):
    folder = run(student=(EQUAL, 0.6), second=(EQUAL, 0.5))
    choice = best_network(folder)
    assert choice.source == folder / "checkpoints" / "best.pt" and choice.notes == []


def test_an_equal_peer_that_scored_higher_and_the_user_is_told(run):
    folder = run(student=(EQUAL, 0.5), second=(EQUAL, 0.6), third=(EQUAL, 0.55))
    choice = best_network(str(folder))
    assert choice.source == folder / "checkpoints" / "best_dml.second.pt"
    (note,) = choice.notes
    assert "best_dml.second.pt is exported" in note
    assert "mIoU 60.00, the student mIoU 50.00" in note and str(folder / "checkpoints") in note


def test_a_peer_of_another_configuration_is_only_mentioned(run):
    folder = run(student=(EQUAL, 0.5), wide=(WIDE, 0.7), narrow=(WIDE, 0.4))
    choice = best_network(folder)
    assert choice.source == folder / "checkpoints" / "best.pt"
    (note,) = choice.notes
    assert note.startswith("best_dml.wide.pt, a peer of another configuration, has mIoU 70.00")


def test_files_and_runs_without_peers_are_taken_as_they_are(run):
    folder = run(student=(EQUAL, 0.5))
    for source in (folder, folder / "checkpoints" / "best.pt", "pretrained:anything"):
        assert best_network(source).source == source
    folder = run(student=(EQUAL, 0.5), second=(EQUAL, 0.6))
    file = folder / "checkpoints" / "best.pt"
    assert best_network(file).source == file


def test_a_folder_without_a_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        best_network(tmp_path)


def test_files_of_peers_have_names_of_their_own(run):
    folder = run(student=(EQUAL, 0.5), second=(EQUAL, 0.6))
    export = folder / "export"
    assert default_path(str(folder), "onnx") == export / "student.onnx"
    peer = folder / "checkpoints" / "best_dml.second.pt"
    assert default_path(str(peer), "onnx") == export / "dml.second.onnx"
    for name in ("epoch_9", "my_best_one"):  # beside the file of best.pt, not in its place
        own = shutil.copy(peer, peer.with_name(f"{name}.pt"))
        assert default_path(str(own), "onnx") == export / f"{name}.onnx"
