"""Files of ``--static`` say that they are: one size, and batches one image at a time."""

import json

import numpy as np
import pytest
import torch
from exported import images, pictures, toy_student
from toy_lanes import save_student
from toy_run import CLASSES

import segkd
from segkd.config.schema import TeacherConfig
from segkd.errors import SegKDError
from segkd.export import to_int8, to_onnx, to_pt2
from segkd.export.pt2 import FACTS
from segkd.models.black_box import open_black_box
from segkd.models.build import network_from_file
from segkd.models.onnx_network import OnnxNetwork

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def static(tmp_path_factory):
    """The toy student's file for one image of 32x48."""
    path = tmp_path_factory.mktemp("static") / "st.onnx"
    to_onnx(network_from_file(toy_student())[0], path, size=(32, 48), dynamic=False)
    return path


def test_batches_are_split(static):
    network, free = OnnxNetwork(static), network_from_file(toy_student())[0]
    given = images(3)
    with torch.no_grad():
        expected = free(given).logits
    torch.testing.assert_close(network(given).logits, expected, atol=1e-4, rtol=1e-4)
    assert segkd.evaluate(static).miou == segkd.evaluate(toy_student()).miou
    found = segkd.predict(static, pictures(3), batch_size=2)
    one_by_one = segkd.predict(free, pictures(3))
    assert all(np.array_equal(*pair) for pair in zip(found, one_by_one, strict=True))


def test_another_size_is_refused_and_its_own_named(static):
    with pytest.raises(SegKDError, match="takes images of 32x48 only, got 40x56"):
        segkd.predict(static, pictures(1, (40, 56)))
    padded = segkd.predict(static, pictures(1, (30, 47)))[0]  # to multiples of 8, as ever
    assert padded.shape == (30, 47)
    config = TeacherConfig(black_box={"onnx": static})
    with pytest.raises(SegKDError, match=r"st\.onnx takes images of 32x48 only"):
        open_black_box("t", config, len(CLASSES), CLASSES)(images(1, (40, 56)))


def test_it_is_calibrated_at_its_size(static, tmp_path):
    found = to_int8(static, tmp_path / "st.int8.onnx", pictures(3, (40, 56)))
    assert found.images == 3
    assert OnnxNetwork(found.path).fixed_size == (32, 48)
    assert segkd.evaluate(found.path).images > 0


def test_the_metadata_say_it_and_files_without_are_understood(static, tmp_path):
    assert OnnxNetwork(static).exported["fixed_size"] == [32, 48]
    model = onnx.load(static)
    onnx.helper.set_model_props(model, _of(model) | {"segkd.fixed_size": "null"})
    onnx.save(model, tmp_path / "old.onnx")
    old = OnnxNetwork(tmp_path / "old.onnx")
    assert old.fixed_size == (32, 48)
    assert old(images(2)).logits.shape[0] == 2
    written = to_pt2(
        network_from_file(toy_student())[0], tmp_path / "x.pt2", size=(32, 48), dynamic=False
    )
    extra = {FACTS: ""}
    torch.export.load(written.path, extra_files=extra)
    assert json.loads(extra[FACTS])["fixed_size"] == [32, 48]


def _of(model):
    return {entry.key: entry.value for entry in model.metadata_props}


def test_files_without_images_are_no_exported_ones(static, tmp_path):
    model = onnx.load(static)
    kept = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["logits"])],
        "other",
        [onnx.helper.make_tensor_value_info("x", 1, [1])],
        [onnx.helper.make_tensor_value_info("logits", 1, [1])],
    )
    other = onnx.helper.make_model(kept, opset_imports=[onnx.helper.make_opsetid("", 17)])
    other.ir_version = 9
    onnx.helper.set_model_props(other, _of(model))
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(SegKDError, match="has no input 'images' of shape"):
        OnnxNetwork(tmp_path / "other.onnx")


def test_lanes(tmp_path):
    checkpoint, dataset = save_student(tmp_path / "run", cut_top=20)
    network, path = network_from_file(checkpoint)[0], tmp_path / "lanes.onnx"
    to_onnx(network, path, bake="lanes", dynamic=False)
    assert segkd.evaluate(path, overrides=["eval.batch_size=2"]).score > 0.9
    frames = [dataset.read(index).image for index in range(2)]
    assert to_int8(path, tmp_path / "lanes.int8.onnx", frames, as_trained=True).agreement > 0.5
