"""int8: smaller, of the same opinion, refused without pictures."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from exported import images, pictures, toy_int8, toy_onnx, toy_student
from toy_run import CLASSES, ToyData

import segkd
from segkd.cpus import saturates_int8
from segkd.errors import SegKDError
from segkd.export import to_int8
from segkd.export.quantize import _agreement
from segkd.inference.lane_output import ABSENT
from segkd.inference.student import Student
from segkd.models.onnx_network import OnnxNetwork

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def test_weights_are_bytes_and_facts_are_kept():
    model = onnx.load(toy_int8())
    kernels = [tensor for tensor in model.graph.initializer if list(tensor.dims[2:]) == [3, 3]]
    assert {tensor.data_type for tensor in kernels} == {onnx.TensorProto.INT8}
    bytes_in = [node for node in model.graph.node if "images" in node.input]
    assert [node.op_type for node in bytes_in] == ["Cast"]  # normalised in float
    network = OnnxNetwork(toy_int8())
    assert network.classes == CLASSES
    assert network.exported["quantized"]["pictures"] == 6
    assert (network.palette == ToyData.palette).all()


def test_it_is_almost_the_same_network_at_any_size():
    one, other = OnnxNetwork(toy_onnx()), OnnxNetwork(toy_int8())
    for size in ((32, 48), (64, 40)):
        given = images(3, size)
        expected, found = one(given).logits, other(given).logits
        assert found.shape == expected.shape
        span, looser = expected.max() - expected.min(), 2 if saturates_int8() else 1
        difference = (found - expected).abs()
        # The largest values of single images are cut off, which few positions have.
        assert difference.max() < 0.15 * looser * span and difference.mean() < 0.02 * looser * span
        assert not found.equal(expected)


def test_what_was_found_is_told(tmp_path):
    sizes = [*pictures(2), *pictures(1, (30, 50))]  # of several sizes, also such as do not fit
    found = to_int8(toy_onnx(), tmp_path / "q.onnx", iter(sizes))
    assert found.images == 3 and 0.5 < found.agreement <= 1
    assert "calibrated on 3 images" in str(found)
    assert [path.name for path in tmp_path.iterdir()] == ["q.onnx"]


def test_a_baked_argmax_stays_exact_in_type(tmp_path):
    path = to_int8(toy_onnx("labels"), tmp_path / "q.onnx", pictures(4)).path
    ops = [node.op_type for node in onnx.load(path).graph.node]
    last = len(ops) - 1 - ops[::-1].index("Resize")
    assert "QuantizeLinear" not in ops[last:]
    assert Student(OnnxNetwork(path)).predict(pictures(1)[0]).dtype == np.uint8


def test_no_pictures_and_a_quantised_file_are_refused(tmp_path):
    with pytest.raises(SegKDError, match="needs calibration images"):
        to_int8(toy_onnx(), tmp_path / "q.onnx", [])
    with pytest.raises(SegKDError, match="quantised already"):
        to_int8(toy_int8(), tmp_path / "q.onnx", pictures(1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("images", [[], [np.zeros((0, 8, 3), np.uint8)], [np.zeros((8, 8))]])
def test_useless_images_are_refused_before_the_float_file_is_written(tmp_path, images):
    with pytest.raises(SegKDError, match=r"calibration images|expected an array"):
        segkd.export(toy_student(), tmp_path / "x.onnx", size=(32, 48), int8=images)
    with pytest.raises(SegKDError, match="bake: got 'label'"):
        segkd.export(toy_student(), tmp_path / "x.onnx", bake="label")
    assert not list(tmp_path.iterdir())


def test_ranges_are_the_mean_of_those_of_the_images(tmp_path):
    pair = pictures(2)

    def scales(calibration):
        """The scales of activations that begin at 0, whose range is their largest value."""
        path = to_int8(toy_onnx(), tmp_path / "q.onnx", calibration).path
        graph = onnx.load(path).graph
        values = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
        found = (node.input for node in graph.node if node.op_type == "QuantizeLinear")
        return {name: float(values[name]) for _, name, zero in found if values[zero] == 0}

    one, other, both = scales(pair[:1]), scales(pair[1:]), scales(pair)
    shared = one.keys() & other.keys() & both.keys()
    assert any(abs(one[name] / other[name] - 1) > 0.01 for name in shared)
    for name in shared:
        assert both[name] == pytest.approx((one[name] + other[name]) / 2, rel=1e-5)


def test_a_point_that_is_lost_at_the_border_does_not_agree():
    def file(*across):
        points = torch.tensor([[[[x, 100.0] for x in across]]])
        facts = {"lane_points": {"camera": [590, 1640]}}
        return SimpleNamespace(exported=facts, lanes=lambda image: (points, None))

    one, other = file(5.0, 300.0, ABSENT, 700.0), file(ABSENT, 310.0, ABSENT, 800.0)
    assert _agreement(one, other, [None]) == 0.5
