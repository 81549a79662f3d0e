"""ONNX and torch.export files: equal to PyTorch, one file, with facts, in whole or not at all."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import images, toy_onnx, toy_student
from torch import nn
from toy_run import CLASSES, ToyData, teacher_net

from segkd.config.schema import ModelConfig
from segkd.errors import SegKDError
from segkd.export import onnx as exporter
from segkd.export import to_onnx, to_pt2
from segkd.export.bundle import Bundle
from segkd.export.program import compare
from segkd.export.pt2 import FACTS
from segkd.extras import require
from segkd.models.build import build_network, network_from_file
from segkd.models.module import wrap
from segkd.models.onnx_metadata import FORMAT, from_texts
from segkd.models.onnx_network import OnnxNetwork

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
K = 5


def lively(config):
    """A random network whose normalisations have statistics, as after a training."""
    torch.manual_seed(0)
    network = build_network(ModelConfig(**config), K)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.7, 1.3)
    return network.eval()


FIRST = {  # blocks that are kept of each row of like ones: export takes time for each
    "enet": {"encoder.stage1": 1, "encoder.stage2": 4, "encoder.stage3": 1},
    "erfnet": {"encoder.stage2": 2, "encoder.stage3": 3, "encoder.stage4": 1},
    "linknet": {},
}


def shortened(network):
    """The same kinds of blocks, each once or twice."""
    for path, count in FIRST[network.config.arch].items():
        parent, _, name = path.rpartition(".")
        blocks = network.get_submodule(path)
        assert len(blocks) > count
        setattr(network.get_submodule(parent), name, blocks[:count])
    return network


def run(path, batch):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": batch.numpy()})


@torch.no_grad()
def check_two_shapes(network, path, shapes):
    for number, (batch, size) in enumerate(shapes):
        given = images(batch, size, seed=7 + number)
        outputs, found = network(given), run(path, given)
        assert np.abs(found[0] - outputs.logits.numpy()).max() < 1e-4
        if outputs.exist is not None:
            assert np.abs(found[1] - outputs.exist.numpy()).max() < 1e-4


def name_of(config):
    return "_".join(str(part) for part in config.values())


@pytest.mark.parametrize(
    "config",
    [
        {"arch": "enet"},
        {"arch": "erfnet"},
        {"arch": "linknet", "encoder": "resnet18", "exist_head": {}}
        | {"options": {"encoder_depth": 3}},
    ],
    ids=name_of,
)
def test_short_networks_equal_pytorch_for_two_batches_and_sizes(config, tmp_path):
    check_export(shortened(lively(config)), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        {"arch": "enet"},
        {"arch": "erfnet"},
        {"arch": "linknet", "encoder": "resnet18", "exist_head": {}},
        {"arch": "enet", "options": {"stages": 4}},
        {"arch": "espnet"},
        {"arch": "espnetv2", "options": {"scale": 0.5}},
        {"arch": "segformer", "encoder": "mit_b0"},
        {"arch": "unet", "encoder": "mit_b0"},
        {"arch": "pspnet", "encoder": "resnet18"},
        {"arch": "deeplabv3", "encoder": "resnet18"},
    ],
    ids=name_of,
)
def test_networks_equal_pytorch_for_two_batches_and_sizes(config, tmp_path):
    check_export(lively(config), tmp_path)


def check_export(network, tmp_path):
    written = to_onnx(network, tmp_path / "x.onnx", size=(64, 96))
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]  # weights are inside
    assert len(written.shapes) == 2 and written.difference < 1e-4
    assert "largest difference" in str(written) and "1x3x64x96" in str(written)
    check_two_shapes(network, written.path, [(1, (96, 160)), (3, (64, 128))])


def test_the_second_size_is_really_another():
    assert OnnxNetwork(toy_onnx()).exported["divisor"] == 8
    network = network_from_file(toy_student())[0]
    check_two_shapes(network, toy_onnx(), [(1, (8, 8)), (5, (40, 56)), (2, (32, 48))])


def test_the_file_knows_classes_colours_and_normalisation():
    texts = ort.InferenceSession(str(toy_onnx())).get_modelmeta().custom_metadata_map
    assert json.loads(texts["segkd.classes"]) == list(CLASSES)
    assert json.loads(texts["segkd.palette"]) == ToyData.palette.tolist()
    assert json.loads(texts["segkd.mean"]) == pytest.approx([0.485, 0.456, 0.406], abs=1e-5)
    assert json.loads(texts["segkd.std"]) == pytest.approx([0.229, 0.224, 0.225], abs=1e-5)
    facts = from_texts(texts, "x")
    assert facts["format"] == FORMAT and facts["version"]
    assert facts["input"] == {"layout": "BCHW", "channels": "RGB", "type": "uint8"}
    assert facts["outputs"] == ["logits"] and facts["dataset"] == "toy"
    assert "steps: 12" in facts["config"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """By the function that wrote it, the toy student's file, asked for at a size it cannot take."""
    folder, network = tmp_path_factory.mktemp("files"), network_from_file(toy_student())[0]
    return {
        write: write(network, folder / write.__name__, size=(30, 50)) for write in (to_onnx, to_pt2)
    }


@pytest.mark.parametrize("write", [to_onnx, to_pt2])
def test_the_file_tells_nothing_of_this_machine(written, write):
    path = written[write].path
    contents = [path.read_bytes()]
    if write is to_pt2:
        with zipfile.ZipFile(path) as archive:
            contents = [archive.read(name) for name in archive.namelist()]
    for data in contents:
        assert b"network.py" not in data and str(Path(__file__).parent).encode() not in data


@pytest.mark.parametrize("write", [to_onnx, to_pt2])
def test_a_size_is_brought_to_one_that_the_network_takes(written, write):
    assert written[write].shapes[0] == (1, 3, 32, 48)


def test_one_size_only_is_refused_at_others(tmp_path):
    path = to_onnx(teacher_net().eval(), tmp_path / "x.onnx", size=(32, 48), dynamic=False).path
    assert run(path, images(1, (32, 48)))[0].shape == (1, 4, 4, 6)
    for shape in ((1, (40, 48)), (2, (32, 48))):
        with pytest.raises(Exception, match="invalid dimensions"):
            run(path, images(*shape))


def test_wrong_numbers_leave_no_file(tmp_path, monkeypatch):
    network, open_session = teacher_net().eval(), exporter.open_session

    class Wrong:
        def __init__(self, data):
            self.session = open_session(data)

        def run(self, *arguments):
            return [answer + 1e-2 for answer in self.session.run(*arguments)]

    monkeypatch.setattr(exporter, "open_session", Wrong)
    with pytest.raises(SegKDError, match=r"differs from PyTorch .* Nothing was written"):
        to_onnx(network, tmp_path / "x.onnx", size=(32, 48))
    assert not list(tmp_path.iterdir())


def test_a_network_whose_values_decide_cannot_be_exported(tmp_path):
    class Deciding(type(teacher_net())):
        def compute(self, images, keep):
            logits = super().compute(images, keep)
            return logits if logits.sum() > 0 else -logits

    network = Deciding(teacher_net().config, 4, width=8).eval()
    with pytest.raises(SegKDError, match="cannot be exported at 32x48"):
        to_onnx(network, tmp_path / "x.onnx", size=(32, 48))


@torch.no_grad()
def test_an_own_module_with_a_tapped_answer_is_exported(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Upsample(scale_factor=2))
    network = wrap(module, 4, logits="1").eval()
    path = to_onnx(network, tmp_path / "x.onnx", size=(32, 48)).path
    given = images(2, (24, 40))
    found = run(path, given)[0]
    assert found.shape == (2, 4, 12, 20)
    assert np.abs(found - network(given).logits.numpy()).max() < 1e-4


def test_an_older_opset_is_written_and_an_unknown_one_refused(tmp_path):
    network = teacher_net().eval()
    path = to_onnx(network, tmp_path / "x.onnx", size=(32, 48), opset=18).path
    versions = {entry.domain: entry.version for entry in onnx.load(path).opset_import}
    assert versions[""] == 18
    smallest = wrap(nn.Conv2d(3, 4, 1), 4).eval()
    with pytest.raises(SegKDError, match="cannot be written as ONNX"):
        to_onnx(smallest, tmp_path / "y.onnx", size=(32, 48), opset=999)
    assert not (tmp_path / "y.onnx").exists()


def test_a_missing_package_names_the_extra():
    with pytest.raises(SegKDError, match=r"needs no_such_package.*segkd\[export\]"):
        require("onnxruntime", "no_such_package")


@torch.no_grad()
def test_pt2_is_equal_and_has_the_same_facts(written):
    network, found = network_from_file(toy_student())[0], written[to_pt2]
    assert found.difference < 1e-4 and len(found.shapes) == 2
    extra = {FACTS: ""}
    program = torch.export.load(io.BytesIO(found.path.read_bytes()), extra_files=extra)
    assert json.loads(extra[FACTS])["classes"] == list(CLASSES)
    given = images(3, (40, 56))
    assert torch.allclose(program.module()(given)[0], network(given).logits, atol=1e-5)


def test_a_runtime_that_fails_without_a_word_is_named_by_its_error():
    bundle = Bundle(teacher_net().eval())

    def run(images):
        raise RuntimeError

    with pytest.raises(SegKDError, match=r"does not run on images of shape .*: RuntimeError"):
        compare(bundle, run, [(1, 3, 32, 48)])
