"""An exported file is scored, asked and loaded as the checkpoint that it came from."""

import json

import numpy as np
import pytest
import torch
from exported import images, pictures, toy_onnx, toy_student
from toy_run import CLASSES

import segkd
from segkd.errors import CheckpointError, ConfigError, SegKDError
from segkd.models.build import network_from_file
from segkd.models.network import Network
from segkd.models.onnx_network import OnnxNetwork, open_session

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def test_it_answers_what_the_checkpoint_answers():
    given = images(2, (40, 24))
    network = segkd.load_student(toy_student()).network.requires_grad_(False)
    exported = segkd.load_student(str(toy_onnx())).network
    assert isinstance(exported, Network) and exported.classes == CLASSES
    assert torch.allclose(exported(given).logits, network(given).logits, atol=1e-4)
    bare = OnnxNetwork(toy_onnx("none"))  # which normalises outside, with the file's numbers
    assert torch.allclose(bare(given).logits, network(given).logits, atol=1e-4)


@pytest.mark.parametrize("options", [[], ["eval.scales=[1,1.3]", "eval.flip=true"]])
def test_its_miou_is_the_checkpoints(options):
    expected, found = (segkd.evaluate(p, overrides=options) for p in (toy_student(), toy_onnx()))
    assert torch.equal(found.matrix, expected.matrix)
    assert found.miou == expected.miou > 0.2


def test_the_miou_of_baked_label_maps_is_the_same():
    expected, found = segkd.evaluate(toy_student()), segkd.evaluate(toy_onnx("labels"))
    assert found.miou == pytest.approx(expected.miou, abs=0.01)
    assert OnnxNetwork(toy_onnx("labels")).returns_labels


@pytest.mark.parametrize("key", ["runtime.precision=bf16", "runtime.device=cuda"])
def test_what_it_cannot_be_run_with_is_refused(key, tmp_path):
    told = rf"{key} would change nothing: .*\.onnx is run on the CPU"
    with pytest.raises(ConfigError, match=told):
        segkd.evaluate(toy_onnx(), overrides=[key])
    with pytest.raises(ConfigError, match=told):
        segkd.predict(toy_onnx(), pictures(1), overrides=[key])
    with pytest.raises(ConfigError, match=told):
        segkd.predict(OnnxNetwork(toy_onnx()), pictures(1), overrides=[key])
    as_it_is = ["runtime.precision=fp32", "runtime.device=cpu"]
    segkd.predict(toy_onnx(), pictures(1), overrides=as_it_is)
    assert segkd.evaluate(toy_onnx(), overrides=as_it_is).images


def test_any_size_is_padded_to_what_it_takes():
    network, exported = segkd.load_student(toy_student()), segkd.load_student(toy_onnx())
    picture = pictures(1, (33, 45))[0]
    assert np.array_equal(exported.predict(picture), network.predict(picture))


def test_a_foreign_file_is_refused(tmp_path):
    model = onnx.load(toy_onnx())
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(CheckpointError, match=r"foreign.onnx has no such metadata"):
        network_from_file(tmp_path / "foreign.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(CheckpointError, match=r"text.onnx cannot be opened by onnxruntime"):
        network_from_file(tmp_path / "text.onnx")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        network_from_file(tmp_path / "missing.onnx")


def test_a_file_of_a_newer_format_is_refused(tmp_path):
    model = onnx.load(toy_onnx())
    onnx.helper.set_model_props(model, {"segkd.format": json.dumps("segkd-export-9")})
    onnx.save(model, tmp_path / "newer.onnx")
    with pytest.raises(CheckpointError, match="segkd-export-9"):
        network_from_file(tmp_path / "newer.onnx")


def test_what_it_cannot_take_is_refused():
    network = OnnxNetwork(toy_onnx())
    with pytest.raises(SegKDError, match="multiples of 8"):
        network(images(1, (30, 48)))
    with pytest.raises(SegKDError, match="takes uint8"):
        network(images(1).float())
    with pytest.raises(ConfigError, match="no tap 'stage4'"):
        network.tap_info(["stage4"])


def test_threads_are_torchs_or_given():
    assert open_session(toy_onnx()).get_session_options().intra_op_num_threads == 1
    assert open_session(toy_onnx(), threads=2).get_session_options().intra_op_num_threads == 2
