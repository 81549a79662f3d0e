"""`segkd.predict` and `segkd.export` in Python, of runs and of the caller's own modules."""

import cv2
import numpy as np
import pytest
import torch
from exported import SIZE, pictures, toy_student
from torch import nn

import segkd
from segkd.config.schema import EvalConfig
from segkd.errors import ConfigError, SegKDError
from segkd.inference.student import Student
from segkd.structures import Outputs


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


def test_a_student_takes_images_and_its_network_tensors(tmp_path):
    student, image = segkd.load_student(toy_student()), pictures(1)[0]
    assert isinstance(student, Student) and "4 classes" in repr(student)
    images = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
    outputs = student.network(images)
    assert isinstance(outputs, Outputs)
    scores = student.predict_scores(image)
    assert scores.shape == (4, *image.shape[:2]) and np.allclose(scores.sum(0), 1, atol=1e-5)
    assert np.array_equal(scores.argmax(0), student.predict(image))
    assert np.array_equal(student(image), student.predict(image))
    with pytest.raises(SegKDError, match=r"student\.network\(images\)"):
        student(images)
    with pytest.raises(SegKDError, match="expected"):
        student.network(torch.zeros(3, 8, 8))
    for given in (student, student.network):
        assert np.array_equal(segkd.predict(given, image), student.predict(image))


def test_a_folder_is_labelled_by_name(tmp_path):
    student, image = segkd.load_student(toy_student()), pictures(1)[0]
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        cv2.imwrite(str(tmp_path / "in" / name), image[..., ::-1])
    found = student.predict_folder(tmp_path / "in", tmp_path / "out")
    assert sorted(found) == ["a.png", "sub/b.png"]
    assert np.array_equal(found["a.png"], student.predict(image))
    assert (tmp_path / "out" / "labels" / "sub" / "b.png").is_file()
    with pytest.raises(SegKDError, match="there is no folder"):
        student.predict_folder(tmp_path / "nowhere")


def test_images_of_one_stem_keep_their_endings_also_in_folders_below(tmp_path):
    image = pictures(1)[0]
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for name in ("sub/a.png", "sub/a.jpg", "b.png"):
        cv2.imwrite(str(tmp_path / "in" / name), image[..., ::-1])
    segkd.load_student(toy_student()).predict(tmp_path / "in", out=tmp_path / "out")
    labels = tmp_path / "out" / "labels"
    found = sorted(path.relative_to(labels).as_posix() for path in labels.rglob("*.png"))
    assert found == ["b.png", "sub/a.jpg.png", "sub/a.png.png"]


def test_no_result_replaces_an_image_that_is_read(tmp_path):
    student, image = segkd.load_student(toy_student()), pictures(1)[0]
    folder = tmp_path / "overlays"
    folder.mkdir()
    given = folder / "00000.jpg"  # the name of the first of several images
    cv2.imwrite(str(given), image[..., ::-1])
    before = given.read_bytes()
    for images, out in ((given, tmp_path), ([given], tmp_path), (folder, tmp_path)):
        with pytest.raises(ConfigError, match="Give another"):
            student.predict(images, out=out)
        with pytest.raises(ConfigError, match="Give another"):
            segkd.predict(student, images, out=out)
    assert given.read_bytes() == before and len(list(tmp_path.rglob("*"))) == 2


def test_the_training_s_evaluation_decides_how_images_are_seen(tmp_path):
    student, image = segkd.load_student(toy_student()), pictures(1, (33, 45))[0]
    flipped = student.predict_scores(image, EvalConfig(flip=True))
    stored = Student(student.network, ["eval.flip=true"]).predict_scores(image)
    assert np.array_equal(stored, flipped)
    assert not np.array_equal(student.predict_scores(image), flipped)


def test_own_modules_need_names_of_classes_that_fit():
    image = striped()[0]
    with pytest.raises(SegKDError, match=r"give classes=\['road'"):
        segkd.predict(Brightest(), image)
    with pytest.raises(SegKDError, match="got 2 names, but the network has 3"):
        network = segkd.load_student(toy_student()).network
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


@pytest.mark.parametrize(
    "key", ["data.crop=[8,8]", "eval.batch_size=4", "runtime.deterministic=true"]
)
def test_what_prediction_does_not_read_is_refused(key):
    with pytest.raises(ConfigError, match="would change nothing: prediction reads only eval"):
        segkd.predict(Brightest(), striped()[0], classes=COLORS, overrides=[key])


def test_results_of_files_have_their_names(tmp_path):
    student = segkd.load_student(toy_student())
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for name in ("a.png", "b.png"):
            cv2.imwrite(str(tmp_path / folder / name), pictures(1)[0])
    for name in ("a.png", "b.png"):
        student.predict(tmp_path / "one" / name, out=tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out/labels").iterdir()) == ["a.png", "b.png"]
    several = [
        tmp_path / "one/a.png",
        tmp_path / "two/a.png",
        tmp_path / "two/b.png",
        pictures(1)[0],
    ]
    student.predict(several, out=tmp_path / "all")
    found = sorted(p.name for p in (tmp_path / "all/labels").iterdir())
    assert found == ["00000.png", "00001.png", "00003.png", "b.png"]


def test_no_image_of_a_list_is_lost_to_another_of_its_name(tmp_path):
    """Numbers stand for names that several files have, and may be the name of a third one."""
    label = striped()[1]
    given = []
    for folder, name in (("one", "00002.png"), ("two", "00001.png"), ("three", "00001.png")):
        (tmp_path / folder).mkdir()
        given.append(tmp_path / folder / name)
        image = np.full((16, 24, 3), (250 * np.eye(3)[len(given) - 1]).astype(np.uint8))
        cv2.imwrite(str(given[-1]), image[..., ::-1])
    found = segkd.predict(Brightest(), given, classes=COLORS, out=tmp_path / "out")
    assert [one[0, 0] for one in found] == [0, 1, 2]
    names = sorted(path.name for path in (tmp_path / "out/labels").iterdir())
    assert names == ["000002.png", "00001.png", "00002.png"]
    cv2.imwrite(str(tmp_path / "a.bmp"), striped()[0][..., ::-1])
    cv2.imwrite(str(tmp_path / "one" / "a.png"), image[..., ::-1])
    pair = [tmp_path / "a.bmp", tmp_path / "one" / "a.png"]
    segkd.predict(Brightest(), pair, classes=COLORS, out=tmp_path / "pair")
    first = cv2.imread(str(tmp_path / "pair/labels/a.bmp.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(first, label) and (tmp_path / "pair/labels/a.png.png").is_file()


def test_batches_have_images():
    """``batch_size=0`` put all images of a size into one batch."""
    for size in (0, -1):
        with pytest.raises(ConfigError, match=f"batch_size: got {size}, expected 1 or more"):
            segkd.predict(Brightest(), [striped()[0]] * 2, classes=COLORS, batch_size=size)
