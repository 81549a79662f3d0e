"""ONNX files of any program as black boxes: bytes or floats, both layouts, ids or probabilities."""

import pytest
import torch
import torch.nn.functional as F
from exported import images as toy_images
from exported import toy_onnx, toy_student
from toy_run import CLASSES as TOY

import segkd
from segkd.config.schema import TeacherConfig
from segkd.errors import ConfigError, SegKDError
from segkd.models.black_box import open_black_box

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
IMAGES = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)


def written(path, *nodes, dtype="UINT8", out="FLOAT", shape=("n", 3, "h", "w"), rank=4):
    """A file whose nodes are (operator, attributes), one after the other."""
    from onnx import TensorProto, helper

    made = []
    for number, (operator, attributes) in enumerate(nodes):
        end = "y" if number == len(nodes) - 1 else f"v{number + 1}"
        start = "x" if number == 0 else f"v{number}"
        made.append(helper.make_node(operator, [start], [end], **attributes))
    graph = helper.make_graph(
        made,
        "box",
        [helper.make_tensor_value_info("x", getattr(TensorProto, dtype), shape)],
        [helper.make_tensor_value_info("y", getattr(TensorProto, out), [None] * rank)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, path)
    return path


FLOAT, SOFTMAX = ("Cast", {"to": 1}), ("Softmax", {"axis": 1})
FIRST = ("Transpose", {"perm": [0, 3, 1, 2]})


def answer(path, classes=("a", "b", "c"), normalize="auto", images=IMAGES, **keys):
    config = TeacherConfig(black_box={"onnx": path, **keys}, normalize=normalize)
    return open_black_box("t", config, len(classes), classes)(images).logits.exp()


def averaged(logits):
    return F.avg_pool2d(logits.softmax(1), 4)


def test_bytes_in_both_layouts(tmp_path):
    plain = written(tmp_path / "a.onnx", FLOAT, SOFTMAX)
    last = written(tmp_path / "b.onnx", FLOAT, FIRST, SOFTMAX, shape=("n", "h", "w", 3))
    for path in (plain, last):
        torch.testing.assert_close(answer(path), averaged(IMAGES.float()).clamp_min(1e-8))


def test_floats_are_normalised_as_told(tmp_path):
    path = written(tmp_path / "a.onnx", ("Identity", {}), dtype="FLOAT")
    keys = {"normalize": ([0.5, 0.4, 0.3], [0.2, 0.3, 0.1]), "returns": "logits"}
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in keys["normalize"])
    torch.testing.assert_close(answer(path, **keys), averaged((IMAGES / 255 - mean) / std))
    with pytest.raises(ConfigError, match="does not say how images are normalised"):
        answer(path, returns="logits")
    with pytest.raises(SegKDError, match="expected probabilities"):
        answer(path, normalize=([0.5] * 3, [1.0] * 3), returns="auto")


def test_class_ids_with_an_axis_of_one(tmp_path):
    for keep in (0, 1):
        argmax = ("ArgMax", {"axis": 1, "keepdims": keep})
        path = written(tmp_path / f"{keep}.onnx", FLOAT, argmax, out="INT64", rank=3 + keep)
        ids = F.one_hot(IMAGES.long().argmax(1), 3).permute(0, 3, 1, 2).float()
        torch.testing.assert_close(answer(path), F.avg_pool2d(ids, 4).clamp_min(1e-8))


def test_fixed_sizes(tmp_path):
    one = written(tmp_path / "one.onnx", FLOAT, SOFTMAX, shape=(1, 3, 16, 24))
    torch.testing.assert_close(answer(one), averaged(IMAGES.float()).clamp_min(1e-8))
    with pytest.raises(SegKDError, match=r"takes images of 16x24 only, got 16x16.*data\.crop"):
        answer(one, images=IMAGES[..., :16])


def test_files_that_are_no_networks_of_images(tmp_path):
    path = written(tmp_path / "a.onnx", FLOAT, shape=("n", 4, "h", "w"))
    with pytest.raises(SegKDError, match="expected 3 channels"):
        answer(path)
    path = written(tmp_path / "b.onnx", FLOAT, shape=("n", 3), rank=2)
    with pytest.raises(SegKDError, match="expected one batch of images"):
        answer(path)
    (tmp_path / "c.onnx").write_text("no model")
    with pytest.raises(SegKDError, match="cannot be opened by onnxruntime"):
        answer(tmp_path / "c.onnx")
    path = written(tmp_path / "d.onnx", FLOAT, SOFTMAX)
    with pytest.raises(ConfigError, match="takes bytes: remove `normalize`"):
        answer(path, normalize="imagenet")


def test_files_of_segkd_say_everything():
    given = toy_images(2, (32, 48))
    network = segkd.load_student(toy_student()).network
    with torch.no_grad():
        logits = network(given).logits
    found = answer(toy_onnx(), TOY, images=given)
    torch.testing.assert_close(found, logits.softmax(1), atol=1e-4, rtol=1e-3)
    turned = answer(toy_onnx(), TOY[::-1], images=given)
    torch.testing.assert_close(turned, found.flip(1))
    with pytest.raises(ConfigError, match="says how it is used"):
        answer(toy_onnx(), TOY, returns="logits", images=given)
    labels = answer(toy_onnx("labels"), TOY, images=given)
    fine = F.interpolate(logits, scale_factor=2, mode="nearest").argmax(1)
    assert (labels.argmax(1) == fine).float().mean() > 0.7
