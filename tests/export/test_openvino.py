"""OpenVINO: the numbers of onnxruntime, or one line that says what to install."""

import shlex
from pathlib import Path

import pytest
from exported import SIZE, images, toy_onnx, toy_student

from segkd.errors import ConfigError, SegKDError
from segkd.export import latency
from segkd.export.latency import Latency, measure, without_openvino
from segkd.export.tensorrt import trtexec_line
from segkd.models import openvino_session
from segkd.models.build import network_from_file
from segkd.models.onnx_network import OnnxNetwork
from segkd.models.openvino_session import OpenVinoSession, run_by

pytest.importorskip("onnxscript")


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("segkd.extras.find_spec", lambda name: None)
    monkeypatch.setattr(openvino_session, "find_spec", lambda name: None)
    with pytest.raises(SegKDError, match=r"openvino.*pip install 'segkd\[openvino\]'"):
        OpenVinoSession(b"")
    assert "segkd[openvino]" in without_openvino()
    assert not list(latency._for_openvino({"ONNX fp32": Path("student.onnx")}))


def test_engines_are_of_exported_files(tmp_path):
    network = OnnxNetwork(toy_onnx())
    run_by(network, None, "x")
    run_by(network, "onnxruntime", "x")
    with pytest.raises(ConfigError, match="Known: onnxruntime, openvino, openvino-bf16"):
        run_by(network, "tensorrt", "x")
    with pytest.raises(ConfigError, match=r"best\.pt is none"):
        run_by(object(), "openvino", "best.pt")


def test_the_fastest_file_is_named():
    rows = [Latency("eager", 9.0), Latency("a", 4.0, 4.0, 1.0), Latency("b", 3.0, 3.0, 1.0)]
    assert latency._fastest(rows) == ["fastest file: b"]
    assert latency._fastest(rows[:2]) == []


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_it_answers_as_onnxruntime_does(precision):
    pytest.importorskip("openvino")
    batch = images(2)
    own = OnnxNetwork(toy_onnx())(batch).logits
    other = OnnxNetwork(toy_onnx()).use_openvino(precision)(batch).logits
    most = 1e-4 if precision == "f32" else 0.1 * own.abs().max()
    assert (own - other).abs().max() < most


def test_it_is_timed_beside_onnxruntime():
    pytest.importorskip("openvino")
    network = network_from_file(toy_student())[0]
    rows = measure(network, {"ONNX fp32": toy_onnx()}, size=SIZE, repeats=2)
    assert [row.name for row in rows][:3] == ["PyTorch eager", "ONNX fp32", "OpenVINO fp32"]
    assert all(row.median for row in rows)


def test_the_command_for_tensorrt_has_the_shapes(tmp_path):
    path = tmp_path / "student.int8.onnx"
    line = trtexec_line(path, (288, 800), dynamic=True, int8=True)
    assert f"--onnx={path} " in line and "--int8" in line
    assert "--maxShapes=images:8x3x288x800" in line
    assert "Shapes" not in trtexec_line(tmp_path / "student.onnx", (288, 800), dynamic=False)
    assert "--int8" not in trtexec_line(path, (288, 800), dynamic=True)  # a name says nothing


def test_names_with_blanks_can_be_typed():
    line = trtexec_line(Path("my net.onnx"), (32, 48), dynamic=False)
    assert shlex.split(line) == [
        *("trtexec", "--onnx=my net.onnx", "--saveEngine=my net.engine", "--fp16")
    ]
