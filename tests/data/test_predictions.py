"""Files of stored predictions: what they hold, which is whose, and what is wrong with them."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from segkd.data.predictions import (
    Prediction,
    PredictionFolder,
    check_size,
    read_prediction,
    top_of,
    write_prediction,
)
from segkd.errors import DataError

DRAW = np.random.default_rng(0)


def shares(classes=5, h=3, w=4):
    values = DRAW.random((classes, h, w)) + 0.01
    return (values / values.sum(0)).astype(np.float32)


def test_the_top_k_are_the_largest_in_falling_order():
    values = shares()
    found = top_of(values, 2)
    for i in range(3):
        for j in range(4):
            order = sorted(range(5), key=lambda k: -values[k, i, j])[:2]
            assert found.ids[:, i, j].tolist() == order
            assert found.values[:, i, j].tolist() == values[order, i, j].tolist()
    assert top_of(values, 5).ids is None and top_of(values, None).ids is None


@pytest.mark.parametrize("count", [None, 1, 3])
def test_a_file_returns_what_was_written_up_to_halves(tmp_path, count):
    written = top_of(shares(), count)
    write_prediction(tmp_path / "a.npz", written)
    found = read_prediction(tmp_path / "a.npz", 5)
    np.testing.assert_allclose(found.values, written.values, atol=1e-3)
    assert (found.ids is None) == (written.ids is None)
    assert written.ids is None or (found.ids == written.ids).all()


def test_label_maps_name_one_class_or_none(tmp_path):
    labels = np.array([[0, 4], [255, 2]], np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), labels)
    found = read_prediction(tmp_path / "a.png", 5)
    assert found.values.tolist() == [[[1, 1], [0, 1]]]
    assert found.ids[0][found.values[0] > 0].tolist() == [0, 4, 2]


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"probabilities": shares(4)}, "has probabilities of 4 classes, the teacher has 5"),
        ({"logits": shares()}, "has arrays logits, expected `probabilities`"),
        ({"probabilities": shares()[0]}, r"has shape \(3, 4\)"),
        ({"probabilities": 3 * shares()}, "are not probabilities.*softmax"),
        ({"probabilities": shares() - 0.5}, "are not probabilities"),
        ({"probabilities": 0.5 * shares()}, "are not probabilities"),
        ({"probabilities": shares() * np.nan}, "are not probabilities"),
        (
            {"probabilities": shares()[:2], "ids": np.full((2, 3, 4), 1)},
            "names a class twice",
        ),
        (
            {"probabilities": shares()[:1], "ids": np.full((1, 3, 4), 5)},
            "has classes 5 to 5, the teacher has 5",
        ),
        ({"probabilities": shares()[:1], "ids": np.zeros((1, 3, 3), int)}, "`ids` have shape"),
    ],
)
def test_arrays_that_are_no_predictions(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message):
        read_prediction(save(tmp_path / "a.npz", **arrays), 5)


def test_files_that_are_no_predictions(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((4, 4), 26, np.uint8))
    with pytest.raises(DataError, match=r"class ids 26, but the teacher has 5 classes"):
        read_prediction(tmp_path / "a.png", 5)
    cv2.imwrite(str(tmp_path / "b.png"), DRAW.integers(0, 255, (4, 4, 3), np.uint8))
    with pytest.raises(DataError, match="label map of colours"):
        read_prediction(tmp_path / "b.png", 5)
    whole = save(tmp_path / "c.npz", probabilities=shares()).read_bytes()
    (tmp_path / "d.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"d\.npz: cannot be read"):
        read_prediction(tmp_path / "d.npz", 5)
    (tmp_path / "g.npz").write_bytes(b"junk")
    with pytest.raises(
        DataError, match=r"g\.npz: cannot be read: it is no whole \.npz file\. Write"
    ):
        read_prediction(tmp_path / "g.npz", 5)
    with pytest.raises(DataError, match="there is no such file"):
        read_prediction(tmp_path / "e.npz", 5)
    np.savez(tmp_path / "f.npz", probabilities=np.array([object()], object))
    with pytest.raises(DataError, match=r"f\.npz: cannot be read"):
        read_prediction(tmp_path / "f.npz", 5)


def test_a_prediction_belongs_to_the_image_of_its_name_and_folders(tmp_path):
    for name in ("bonn/a.png", "ulm/a.png", "b.png", "c.jpg.npz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    folder = PredictionFolder(tmp_path, "teachers.t.black_box.predictions")

    def found(image):
        path = folder.find(Path(image))
        return None if path is None else path.relative_to(tmp_path).as_posix()

    assert found("/data/train/bonn/a.jpg") == "bonn/a.png"
    assert found("/data/train/ulm/a.jpg") == "ulm/a.png"
    assert found("/data/train/bonn/b.png") == "b.png"
    assert found("c.jpg") == "c.jpg.npz"
    assert found("/data/train/koeln/a.jpg") is None and found("d.jpg") is None
    (tmp_path / "b.npz").touch()
    with pytest.raises(DataError, match=r"b\.npz and b\.png .* are both named like b\.jpg"):
        PredictionFolder(tmp_path, "key").find(Path("x/b.jpg"))
    with pytest.raises(DataError, match=r"d\.jpg: has no prediction .*missing=skip"):
        raise folder.missing(Path("d.jpg"))


def test_folders_of_segkd_predict(tmp_path):
    (tmp_path / "classes.json").write_text('[{"id": 1, "name": "b"}, {"id": 0, "name": "a"}]')
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/x.png").touch()
    (tmp_path / "format.json").write_text('{"format": "cityscapes", "classes": ["a", "b"]}')
    with pytest.raises(DataError, match="ids of 'cityscapes'"):
        PredictionFolder(tmp_path, "key")
    (tmp_path / "format.json").write_text('{"format": "labels", "classes": ["a", "b"]}')
    folder = PredictionFolder(tmp_path, "key")
    assert folder.classes == ("a", "b") and folder.find(Path("x.jpg")).parent.name == "labels"
    (tmp_path / "probabilities").mkdir()
    (tmp_path / "probabilities/x.npz").touch()
    assert PredictionFolder(tmp_path, "key").find(Path("x.jpg")).suffix == ".npz"


def test_folders_without_predictions(tmp_path):
    with pytest.raises(DataError, match="no prediction in this folder"):
        PredictionFolder(tmp_path, "key")
    with pytest.raises(DataError, match=r"key: there is no such folder"):
        PredictionFolder(tmp_path / "none", "key")


def test_a_prediction_of_another_picture_is_refused():
    image = np.zeros((101, 203, 3), np.uint8)
    for size in ((101, 203), (26, 51), (13, 26)):
        check_size(Path("a"), Prediction(np.zeros((1, *size), np.float32)), image)
    for size in ((203, 101), (26, 60), (100, 100)):
        with pytest.raises(DataError, match="not the same picture"):
            check_size(Path("a"), Prediction(np.zeros((1, *size), np.float32)), image)
