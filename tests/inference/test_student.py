"""`segkd.predict` and `segkd.export` in Python, of runs and of the caller's own modules."""

import cv2
import numpy as np
import pytest
import torch
from exported import SIZE, pictures, toy_student
from torch import nn

import segkd
from segkd.errors import SegKDError


class Brightest(nn.Module):
    """Logits are the normalised channels: the class of a pixel is its strongest colour."""

    def forward(self, images):
        return images


COLORS = ("red", "green", "blue")


def striped(height=16, width=24):
    """Three strips of red, green and blue, and the classes that they are."""
    label = np.repeat(np.arange(3), width // 3)[None].repeat(height, 0)
    return (250 * np.eye(3)[label]).astype(np.uint8), label


def test_an_own_module_labels_arrays_files_and_folders(tmp_path):
    image, label = striped()
    cv2.imwrite(str(tmp_path / "a.png"), image[..., ::-1])
    (tmp_path / "b.png").write_bytes(b"broken")
    own = Brightest()
    assert np.array_equal(segkd.predict(own, image, classes=COLORS), label)
    assert np.array_equal(segkd.predict(own, tmp_path / "a.png", classes=COLORS), label)
    turned = segkd.predict(own, [image, image[:, ::-1].copy()], classes=COLORS)
    assert np.array_equal(turned[1], label[:, ::-1])
    with pytest.warns(UserWarning, match="b.png"):
        found = segkd.predict(own, tmp_path, classes=COLORS, out=tmp_path / "out")
    assert list(found) == ["a.png"]
    written = cv2.imread(str(tmp_path / "out" / "labels" / "a.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(written, label)
    with pytest.raises(SegKDError, match=r"b\.png"):
        segkd.predict(own, [image, tmp_path / "b.png"], classes=COLORS)


def test_a_run_labels_as_its_student_does():
    image = pictures(1)[0]
    expected = segkd.load_student(toy_student()).predict(image)
    assert np.array_equal(segkd.predict(toy_student(), image), expected)


def test_own_modules_need_names_of_classes_that_fit():
    image = striped()[0]
    with pytest.raises(SegKDError, match=r"give classes=\['road'"):
        segkd.predict(Brightest(), image)
    with pytest.raises(SegKDError, match="got 2 names, but the network has 3"):
        network = segkd.load_student(toy_student())
        network.num_classes = 3
        segkd.predict(network, image, classes=("a", "b"))
    with pytest.raises(SegKDError, match="expected an array"):
        segkd.predict(Brightest(), 3, classes=COLORS)


def test_a_run_and_an_own_module_are_exported(tmp_path):
    written = segkd.export(toy_student(), tmp_path / "toy.onnx", size=SIZE)
    assert written.difference < 1e-4
    image, label = striped()
    torch.manual_seed(0)
    module = nn.Conv2d(3, 3, 1, bias=False)
    nn.init.dirac_(module.weight)
    path = tmp_path / "own.onnx"
    segkd.export(module, path, classes=COLORS, size=(16, 24), int8=[image] * 2)
    assert np.array_equal(segkd.predict(path, image), label)
    assert segkd.load_student(path).classes == COLORS
    assert (tmp_path / "own.int8.onnx").is_file()


def test_what_cannot_be_exported_is_refused(tmp_path):
    with pytest.raises(SegKDError, match=r"ends with \.onnx or \.pt2"):
        segkd.export(toy_student(), tmp_path / "toy.tflite")
    with pytest.raises(SegKDError, match="opset and int8 are for"):
        segkd.export(toy_student(), tmp_path / "toy.pt2", opset=18)
    with pytest.raises(SegKDError, match="exported file"):
        segkd.export("toy.onnx", tmp_path / "again.onnx")
