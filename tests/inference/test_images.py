"""From an image to its label map, in one call."""

import cv2
import numpy as np
import pytest
import torch
from exported import pictures, toy_student
from toy_run import CLASSES, ToyData

import segkd
from segkd.config.schema import EvalConfig
from segkd.errors import DataError
from segkd.inference.images import image_views
from segkd.inference.scores import class_probabilities
from segkd.inference.student import Student
from segkd.inference.views import label_maps, views
from segkd.models.student_info import StudentInfo


@pytest.fixture
def student():
    return segkd.load_student(toy_student())


def as_images(picture):
    return torch.from_numpy(picture.transpose(2, 0, 1).copy())[None]


def test_three_lines_from_a_file_to_names_of_classes(student, tmp_path):
    picture = ToyData(ToyData.Config(name="toy"), "val").read(0).image
    cv2.imwrite(str(tmp_path / "x.png"), picture[..., ::-1])
    labels = student.predict(tmp_path / "x.png")
    assert labels.shape == (32, 48) and labels.dtype == np.uint8
    assert np.array_equal(labels, label_maps(student.network, as_images(picture))[0].numpy())
    assert np.array_equal(student(picture), labels)
    assert np.array_equal(student(str(tmp_path / "x.png")), labels)
    assert student.classes == CLASSES and student.palette.shape == (4, 3)


def test_it_is_asked_in_eval_mode_and_left_as_it_was(student):
    picture = pictures(1)[0]
    expected = student.predict(picture)
    student.network.train()
    assert np.array_equal(student.predict(picture), expected)
    assert student.network.training


def test_any_size_and_all_of_evals_options(student):
    picture = pictures(1, (37, 51))[0]
    config = EvalConfig(scales=[1, 1.5], flip=True)
    found = student.predict(picture, config)
    expected = label_maps(student.network, as_images(picture), config=config)[0].numpy()
    assert found.shape == (37, 51) and np.array_equal(found, expected)


def test_a_student_of_resized_images_sees_resized_ones(student):
    picture = pictures(1, (64, 96))[0]
    network = student.network
    network.info = StudentInfo.of(
        {"classes": CLASSES, "config": "data: {name: toy, resize: [32, 48]}"}
    )
    small = cv2.resize(picture, (48, 32), interpolation=cv2.INTER_AREA)
    expected = label_maps(student.network, as_images(small), (64, 96))[0].numpy()
    assert np.array_equal(Student(network).predict(picture), expected)
    network.info = StudentInfo.of({"classes": CLASSES})
    assert not np.array_equal(Student(network).predict(picture), expected)


@pytest.mark.parametrize("config", [None, EvalConfig(scales=[1, 1.5])])
def test_probabilities_are_those_of_evaluation(student, config):
    batch = pictures(2, (24, 40))
    found = class_probabilities(image_views(student.network, batch, config), (24, 40)).numpy()
    stacked = torch.cat([as_images(picture) for picture in batch])
    with torch.no_grad():
        passes = views(student.network, stacked, config)
    expected = class_probabilities(passes, (24, 40)).numpy()
    assert found.dtype == np.float32 and np.allclose(found, expected, atol=1e-6)
    assert np.allclose(found.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), [[1]], np.zeros((4, 4, 4), np.uint8)]
)
def test_what_is_no_picture_says_what_is(student, wrong):
    with pytest.raises(DataError, match=r"expected an array \(H, W, 3\) uint8"):
        student.predict(wrong)


def test_a_file_that_cannot_be_read_is_named(student, tmp_path):
    with pytest.raises(DataError, match=r"none.png"):
        student.predict(tmp_path / "none.png")
