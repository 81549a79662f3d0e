"""Weights of another program at work: ``student.…`` and ``data.name`` name their network."""

import cv2
import numpy as np
import pytest
import torch
from exported import toy_student
from toy_run import ToyData, teacher_net

import segkd
from segkd import cli
from segkd.config.schema import ModelConfig
from segkd.errors import CheckpointError, ConfigError, SegKDError
from segkd.inference.lane_detector import LaneDetector
from segkd.inference.predictor import Predictor
from segkd.inference.student import Student, _Given
from segkd.models.build import build_network
from segkd.models.student_info import StudentInfo

TOY = ["student.arch=toy", "student.normalize=none", "student.options.width=8", "data.name=toy"]
LANES = ["student.arch=erfnet", "student.normalize=none", "data.name=culane"]


@pytest.fixture
def theirs(tmp_path):
    """The file of a network, and the network."""
    network = teacher_net(normalize="none").eval()
    torch.save({"state_dict": network.state_dict()}, tmp_path / "theirs.pth")
    return tmp_path / "theirs.pth", network


@pytest.fixture
def lane_file(tmp_path):
    network = build_network(ModelConfig(arch="erfnet", normalize="none"), 5)
    torch.save(network.state_dict(), tmp_path / "lanes.pth")
    return tmp_path / "lanes.pth"


def test_label_maps(theirs):
    path, network = theirs
    image = ToyData(ToyData.Config(name="toy"), "val").read(0).image
    found = segkd.predict(path, image, overrides=[*TOY, "eval.flip=true", "runtime.device=cpu"])
    expected = Student(network, ["eval.flip=true"]).predict(image)
    np.testing.assert_array_equal(found, expected)


def test_lanes_without_the_dataset(lane_file):
    keys = [*LANES, "data.cut_top=240", "data.resize=[80,160]", "eval.lanes.threshold=0.1"]
    detector = LaneDetector(lane_file, overrides=[*keys, "runtime.device=cpu"])
    assert detector.names == ("left-left", "left", "right", "right-right")
    assert detector.network.info.resize == (80, 160) and detector.rules.threshold == 0.1
    assert detector.detect(np.zeros((590, 1640, 3), np.uint8)).top == 240


def test_lanes_of_an_odd_number_of_slots(tmp_path):
    network = build_network(ModelConfig(arch="erfnet", normalize="none"), 4)
    torch.save(network.state_dict(), tmp_path / "lanes.pth")
    keys = [*LANES, "data.num_lanes=3", "data.left_lanes=2", "runtime.device=cpu"]
    detector = LaneDetector(tmp_path / "lanes.pth", overrides=keys)
    assert detector.names == ("left 2", "left 1", "right 1")


def test_the_commands(theirs, lane_file, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("image.png", np.zeros((64, 96, 3), np.uint8))
    for command, file, keys in (("predict", theirs[0], TOY), ("lane", lane_file, LANES)):
        with pytest.raises(SystemExit) as end:
            cli.main([command, str(file), "image.png", *keys, "runtime.device=cpu"])
        assert not end.value.code
        assert "tensors matched" in capfd.readouterr().err


def test_what_is_not_read_is_refused(theirs, lane_file):
    with pytest.raises(ConfigError, match=r"data\.root would change nothing: lane detection with"):
        LaneDetector(lane_file, overrides=[*LANES, "data.root=somewhere"])
    with pytest.raises(ConfigError, match=r"eval\.every would change nothing"):
        segkd.predict(theirs[0], np.zeros((8, 8, 3), np.uint8), overrides=[*TOY, "eval.every=1"])
    with pytest.raises(ConfigError, match=r"Remove the keys `student\.…`"):
        best = toy_student() / "checkpoints/best.pt"
        segkd.predict(best, np.zeros((8, 8, 3), np.uint8), overrides=["student.arch=toy", *TOY[3:]])


@pytest.mark.parametrize("call", [segkd.load_student, LaneDetector])
def test_without_its_network_the_commands_that_take_it_are_named(theirs, call):
    with pytest.raises(CheckpointError, match="eval, predict, lane and export; in Python"):
        call(theirs[0])


def test_a_student_that_labels_pixels_detects_no_lanes(theirs):
    with pytest.raises(SegKDError, match="labels pixels and does not detect lanes"):
        LaneDetector(theirs[0], overrides=[*TOY[:3], "data.name=toy"])


def test_they_are_exported(theirs, lane_file, tmp_path, capfd, monkeypatch):
    """The files answer as the networks do, and need no key any more."""
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    image = ToyData(ToyData.Config(name="toy"), "val").read(0).image
    size = ["--size", *map(str, image.shape[:2]), "--no-latency"]
    calls = (
        (str(theirs[0]), *TOY, *size, "--int8", "--pictures", "2", "eval.flip=true"),
        (str(lane_file), *LANES, "data.resize=[80,160]", "--size", "80", "160", "--no-latency"),
    )
    for call in calls:
        with pytest.raises(SystemExit) as end:
            cli.main(["export", *call])
        told = capfd.readouterr()
        assert not end.value.code and "tensors matched" in told.err
    flipped = [*TOY, "eval.flip=true"]  # which is in the exported file then
    answer = segkd.predict("theirs.pth", image, overrides=flipped)
    np.testing.assert_array_equal(segkd.predict("theirs.onnx", image), answer)
    expected = segkd.evaluate("theirs.pth", overrides=flipped)
    assert torch.equal(segkd.evaluate("theirs.onnx").matrix, expected.matrix)
    detector = LaneDetector("lanes.onnx")
    assert detector.names == ("left-left", "left", "right", "right-right")
    assert detector.network.info.resize == (80, 160)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ((*TOY, "optim.lr=1"), "optim: unknown key"),
        ((*TOY, "eval.flip=true"), "eval.flip would change nothing"),
        (("student.arch=toy",), "data: is missing"),
        (("data.name=toy",), "student.arch=… data.name=…"),
    ],
)
def test_an_export_refuses_what_it_does_not_read(theirs, capfd, keys, told):
    with pytest.raises(SystemExit) as end:
        cli.main(["export", str(theirs[0]), *keys])
    assert end.value.code == 2 and told in " ".join(capfd.readouterr().err.split())


def test_predictions_of_a_lane_student_are_of_the_part_that_it_has_learnt(lane_file):
    keys = [*LANES, "data.cut_top=240", "data.resize=[80,160]"]
    image = np.random.default_rng(0).integers(0, 256, (295, 820, 3), np.uint8)  # of half the size
    found = segkd.predict(lane_file, image, overrides=keys)
    network = LaneDetector(lane_file, overrides=keys).network
    network.info = StudentInfo.of({"classes": list(network.classes), "dataset": "culane"})
    plain = Predictor(network, None, (80, 160))  # of a network that does not say what it has learnt
    (road,) = plain.predictions(_Given([image[120:]]))
    assert found.shape == (295, 820) and not found[:120].any()
    np.testing.assert_array_equal(found[120:], road.label)
    with pytest.raises(ConfigError, match=r"eval\.flip=true would mix lanes"):
        segkd.predict(lane_file, image, overrides=[*keys, "eval.flip=true"])
    scores = Student(LaneDetector(lane_file, overrides=keys).network).predict_scores(image)
    assert scores.shape == (5, 295, 820)
    np.testing.assert_allclose(scores.sum(0), 1, atol=1e-3)
    assert (scores[0, :120] == 1).all()
