"""Label maps as benchmark servers and readers expect them."""

import cv2
import numpy as np
import pytest
from PIL import Image

from segkd.data.cityscapes import CLASSES, LABEL_IDS
from segkd.data.palette import default_palette
from segkd.errors import ConfigError
from segkd.inference.label_files import label_encoder, voc_colors


def names(count):
    return [f"c{number}" for number in range(count)]


def written(data, tmp_path):
    (tmp_path / "x.png").write_bytes(data)
    return tmp_path / "x.png"


def random_label(classes, size=(5, 7)):
    label = np.random.default_rng(0).integers(0, classes, size)
    return label.astype(np.uint8 if classes <= 256 else np.int64)


@pytest.mark.parametrize(("classes", "dtype"), [(19, np.uint8), (300, np.uint16)])
def test_labels_are_grey_ids(tmp_path, classes, dtype):
    label = random_label(classes)
    data = label_encoder("labels", names(classes), default_palette(classes))(label)
    found = cv2.imread(str(written(data, tmp_path)), cv2.IMREAD_UNCHANGED)
    assert found.dtype == dtype and np.array_equal(found, label)


def test_a_palette_shows_colours_and_keeps_ids(tmp_path):
    label, palette = random_label(6), default_palette(6)
    path = written(label_encoder("palette", names(6), palette)(label), tmp_path)
    with Image.open(path) as image:
        assert image.mode == "P" and np.array_equal(np.array(image), label)
        assert np.array_equal(np.array(image.convert("RGB")), palette[label])


def test_cityscapes_gets_official_ids_by_name(tmp_path):
    order = [13, 0, 10, 6, 7]  # car, road, sky, traffic light, traffic sign
    classes = [CLASSES[k].replace(" ", "_").title() for k in order]
    label = random_label(5)
    data = label_encoder("cityscapes", classes, default_palette(5))(label)
    found = cv2.imread(str(written(data, tmp_path)), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(found, LABEL_IDS[order][label])
    assert {26, 7, 23, 19, 20} == set(np.unique(found))


def test_voc_has_vocs_colours(tmp_path):
    label = random_label(21)
    path = written(label_encoder("voc", names(21), default_palette(21))(label), tmp_path)
    with Image.open(path) as image:
        assert np.array_equal(np.array(image), label)
    colors = voc_colors()  # rows of the development kit
    assert colors[[0, 1, 2, 15, 20]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [192, 128, 128],
        [0, 64, 128],
    ]
    assert colors[255].tolist() == [224, 224, 192]


def test_ade20k_counts_from_one(tmp_path):
    label = random_label(150, (20, 20))
    data = label_encoder("ade20k", names(150), default_palette(150))(label)
    found = cv2.imread(str(written(data, tmp_path)), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(found, label.astype(int) + 1)


@pytest.mark.parametrize(
    ("kind", "count", "message"),
    [
        ("cityscapes", 3, "classes of Cityscapes, not 'c0'"),
        ("voc", 19, "21 classes, background first; this student has 19"),
        ("ade20k", 151, "the 150 classes"),
        ("palette", 300, "at most 256"),
        ("pascal", 3, "unknown format 'pascal'"),
    ],
)
def test_classes_that_do_not_fit_are_refused(kind, count, message):
    with pytest.raises(ConfigError, match=message):
        label_encoder(kind, names(count), default_palette(count))
