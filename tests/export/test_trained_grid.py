"""int8 files of quantised students: the trained scales, the trained scores, and what is refused."""

from functools import cache

import numpy as np
import pytest
import torch
from exported import SIZE, images, pictures
from torch import nn
from toy_run import ToyData, toy_config

from segkd.config.quantize import QuantizeConfig
from segkd.cpus import saturates_int8
from segkd.engine.run import train_run
from segkd.errors import SegKDError
from segkd.export import to_int8, to_onnx
from segkd.metrics.confusion import confusion, mean_iou
from segkd.models.build import network_from_file
from segkd.models.module import wrap
from segkd.models.onnx_network import OnnxNetwork
from segkd.models.quantized import bake_weights, facts_of, quantize_network
from segkd.models.student_info import StudentInfo
from segkd.ops.quantize import symmetric_scale

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

ALL = {"first_and_last": True}
RUNS = {
    "channel": {"bits": 4, **ALL},
    "tensor": {"bits": 5, "per": "tensor"},
    "inputs": {"activations": 8, **ALL},
    "bucket": {"per": "bucket", "bucket_size": 32},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """By name of RUNS: the student of a run, its float and its int8 file, once each."""
    folder = tmp_path_factory.mktemp("grids")

    @cache
    def make(name):
        run = folder / name
        train_run(toy_config(run, steps=12, quantize=RUNS[name]))
        network, _ = network_from_file(run)
        to_onnx(network, run / "float.onnx", size=SIZE)
        found = to_int8(run / "float.onnx", run / "int8.onnx", calibration())
        return network, run / "float.onnx", found

    return make


def samples():
    data = ToyData(toy_config("any").data, "val")
    return [data.read(index) for index in range(len(data))]


def calibration():
    return [sample.image for sample in samples()]


def constants(model):
    return {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}


def dequantised(path):
    """By layer: the weight of an int8 file as integers (C, …), its scales, and the axis."""
    model = onnx.load(path)
    values, found = constants(model), {}
    for node in model.graph.node:
        name = node.input[0].removesuffix("_quantized")
        if node.op_type == "DequantizeLinear" and name.endswith(".weight"):
            axis = next((a.i for a in node.attribute if a.name == "axis"), None)
            layer = name.removeprefix("network.").removesuffix(".weight")
            zero = values[node.input[2]]
            assert not zero.any()
            found[layer] = (values[node.input[0]], values[node.input[1]], axis)
    return found


def folded(network, layer):
    """The weight of a toy's layer with the batch norm behind it, and its factor by channel."""
    weight = network.get_submodule(layer).weight.detach()
    factor = torch.ones(len(weight))
    if layer.startswith("encoder."):
        norm = network.encoder[int(layer.split(".")[1])][1]
        factor = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    return weight * factor.view(-1, 1, 1, 1), factor


@pytest.mark.parametrize("name", ["channel", "tensor", "inputs"])
def test_scales_are_those_of_training_times_the_folded_factor(made, name):
    network, _, found = made(name)
    facts = network.info.quantization
    layers = dequantised(found.path)
    assert layers.keys() == set(facts.layers) and found.trained == len(layers)
    for layer, (integers, scales, axis) in layers.items():
        expected, factor = folded(network, layer)
        plain = network.get_submodule(layer).weight.detach()
        trained = symmetric_scale(plain, facts.settings.bits, facts.settings.per, 0)
        assert integers.dtype == np.int8 and axis == 0
        assert np.abs(integers).max() == 2 ** (facts.settings.bits - 1) - 1
        torch.testing.assert_close(
            torch.tensor(scales), trained * factor.abs(), rtol=1e-5, atol=1e-9
        )
        back = torch.tensor(integers) * torch.tensor(scales).view(-1, 1, 1, 1)
        torch.testing.assert_close(back, expected, rtol=1e-4, atol=1e-6)


def miou(network):
    matrix = torch.zeros(4, 4, dtype=torch.int64)
    for sample in samples():
        image = torch.from_numpy(sample.image).permute(2, 0, 1)[None]
        with torch.no_grad():
            logits = network(image).logits
        full = nn.functional.interpolate(logits, sample.label.shape, mode="bilinear")
        matrix += confusion(full.argmax(1)[0], torch.from_numpy(sample.label).long(), 4, 255)
    return mean_iou(matrix)


@pytest.mark.parametrize("name", ["channel", "tensor", "inputs"])
def test_the_file_scores_as_the_network_in_training(made, name):
    network, _, found = made(name)
    file = OnnxNetwork(found.path)
    looser = 3 if saturates_int8() else 1
    assert abs(miou(network) - miou(file)) < 0.01 * looser
    batch = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in calibration()])
    one, other = network(batch).logits.detach(), file(batch).logits
    tolerance = 0.25 if saturates_int8() else 0.03
    assert (one - other).abs().max() < tolerance * (one.max() - one.min())
    assert found.again == 0 and f"{found.trained} layers on the grid" in str(found)


def test_inputs_have_their_trained_scales(made):
    network, _, found = made("inputs")
    model = onnx.load(found.path)
    values = constants(model)
    makers = {out: node for node in model.graph.node for out in node.output}
    seen = set()
    for node in model.graph.node:
        if node.op_type != "Conv":
            continue
        dequantise = makers[node.input[0]]
        layer = makers[node.input[1]].input[0].removesuffix(".weight_quantized")
        layer = layer.removeprefix("network.")
        low, high = network.info.quantization.ranges[layer]
        low = min(low, 0.0)
        assert float(values[dequantise.input[1]]) == pytest.approx((high - low) / 255, rel=1e-5)
        assert int(values[dequantise.input[2]]) == round(-low / (high - low) * 255)
        seen.add(layer)
    assert seen == set(network.info.quantization.layers)


def test_a_float_file_computes_with_float_inputs_and_quantised_weights(made):
    network, path, _ = made("inputs")
    values = constants(onnx.load(path))
    weight = network.classifier.weight.detach()
    assert np.allclose(values["network.classifier.weight"], weight)
    assert not any(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node)


def test_layers_that_were_float_stay_float(made):
    _, _, found = made("tensor")
    names = {one.name: one.data_type for one in onnx.load(found.path).graph.initializer}
    for layer in ("encoder.0.0", "classifier"):
        assert names[f"network.{layer}.weight"] == onnx.TensorProto.FLOAT
    assert OnnxNetwork(found.path).exported["quantized"]["trained_layers"] == 2


def test_a_grid_that_int8_cannot_hold_is_told(made):
    _, _, found = made("bucket")
    assert found.trained == 0 and found.again == 2
    assert "WARNING: 2 layers were trained on another grid" in str(found)


def test_inputs_of_fewer_bits_are_refused(tmp_path):
    train_run(toy_config(tmp_path / "run", steps=1, quantize={"activations": 4}))
    network, _ = network_from_file(tmp_path / "run")
    to_onnx(network, tmp_path / "float.onnx", size=SIZE)
    with pytest.raises(SegKDError, match=r"activations of 4 bits.*quantize\.activations=8"):
        to_int8(tmp_path / "float.onnx", tmp_path / "int8.onnx", calibration())
    assert not (tmp_path / "int8.onnx").exists()


class Tokens(nn.Module):
    """Layers whose weights an exporter transposes, folds with negative factors, or names anew."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 3, 4, 1)
        self.norm = nn.BatchNorm2d(8)
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 6, bias=False)
        self.gate = nn.Linear(6, 6)
        self.up, self.out = nn.ConvTranspose2d(6, 8, 2, stride=2), nn.Conv2d(8, 4, 1)
        self.after = nn.BatchNorm2d(8)

    def forward(self, images):
        value = self.norm(self.patch(images))
        batch, _, height, width = value.shape
        tokens = self.two(self.one(value.flatten(2).transpose(1, 2)))
        value = tokens.transpose(1, 2).reshape(batch, 6, height, width)
        value = value * self.gate(value.mean((2, 3)))[:, :, None, None].sigmoid()
        return self.out(self.after(self.up(value)).relu())


@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_all_kinds_of_layers_are_found_again(tmp_path, per):
    torch.manual_seed(0)
    network = wrap(Tokens(), 4).eval()
    for norm in (part for part in network.modules() if isinstance(part, nn.BatchNorm2d)):
        norm.running_var.uniform_(0.3, 3)
        nn.init.uniform_(norm.weight, -2, 2)
    layers = quantize_network(network, QuantizeConfig(bits=4, per=per, first_and_last=True))
    facts = facts_of(network)
    bake_weights(network)
    payload = {"classes": list("abcd"), "quantization": facts.model_dump(mode="json")}
    network.info = StudentInfo.of(payload)
    to_onnx(network, tmp_path / "float.onnx", size=(64, 64))
    given = pictures(4, (64, 64))
    found = to_int8(tmp_path / "float.onnx", tmp_path / "int8.onnx", given)
    assert found.trained == len(layers.quantized) == 6 and found.again == 0
    batch = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in given])
    one, other = network(batch).logits.detach(), OnnxNetwork(found.path)(batch).logits
    assert (one - other).abs().max() < 0.03 * (one.max() - one.min())
    integers = [
        value
        for value in constants(onnx.load(found.path)).values()
        if value.dtype == np.int8 and value.ndim >= 2
    ]
    assert len(integers) == 6 and all(np.abs(value).max() == 7 for value in integers)


def test_a_dead_channel_keeps_its_bias(tmp_path):
    run = tmp_path / "run"
    train_run(toy_config(run, steps=4, quantize=ALL))
    network, _ = network_from_file(run)
    network.classifier.weight.data[2] = 0.0
    network.classifier.bias.data[2] = 0.123
    to_onnx(network, tmp_path / "float.onnx", size=SIZE)
    found = to_int8(tmp_path / "float.onnx", tmp_path / "int8.onnx", calibration())
    assert found.trained == 4
    logits = OnnxNetwork(found.path)(images(1)).logits
    assert logits[:, 2].min() > 0.1 and logits[:, 2].max() < 0.15
