import io
import pickle

import cv2
import numpy as np
import pytest

from segkd.data import reading
from segkd.data.reading import DAMAGED_ARRAYS, SampleError, read_image, read_mask, wrong_values


@pytest.mark.parametrize("ending", [".png", ".jpg"])
def test_cut_files_are_refused(tmp_path, ending):
    path = tmp_path / f"x{ending}"
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    cv2.imwrite(str(path), image)
    assert read_image(path).shape == (40, 50, 3)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(SampleError, match=rf"x{ending}: cannot be read: it is cut off"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\nIEND"])
def test_what_is_no_image_is_refused(tmp_path, content):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    for read in (read_image, read_mask):
        with pytest.raises(SampleError, match=r"x\.png: cannot be read"):
            read(path)
    with pytest.raises(SampleError, match=r"y\.png: there is no such file"):
        read_image(tmp_path / "y.png")


def test_colours_come_in_the_order_rgb(tmp_path):
    path = tmp_path / "x.png"
    cv2.imwrite(str(path), np.full((2, 2, 3), (3, 2, 1), np.uint8))
    assert read_image(path)[0, 0].tolist() == read_mask(path)[0, 0].tolist() == [1, 2, 3]


def test_wrong_values():
    label = np.array([[0, 18, 255, 19, 200]])
    assert wrong_values(label.astype(np.uint8), 19, 255) == [19, 200]
    assert wrong_values(label.astype(np.int32) - 1, 19, 254) == [-1, 199]
    assert wrong_values(label.astype(np.int32) - 1, 256, -1) == []


@pytest.mark.parametrize("void", [0, 7, 200, 254, 255])
@pytest.mark.parametrize("classes", [1, 19, 254, 255, 256])
def test_wrong_values_of_bytes_are_those_of_wide_numbers(classes, void, monkeypatch):
    monkeypatch.setattr(reading, "_FIT_CACHE", 16)
    every = np.arange(256, dtype=np.uint8).reshape(8, 32)
    for label in (every, every % min(classes, 255), np.full((2, 3), void, np.uint8), every[:0]):
        expected = wrong_values(label.astype(np.int32), classes, void)
        assert wrong_values(label, classes, void) == expected


def test_errors_cross_processes():
    error = pickle.loads(pickle.dumps(SampleError("f.png", "is bad", "Repair it.")))
    assert str(error) == "f.png: is bad. Repair it." and error.repair == "Repair it."


@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("compressed", [False, True])
def test_every_error_of_a_damaged_array_is_known(compressed, tmp_path):
    """numpy reads a header as Python source, whose errors differ between versions of Python."""
    path = tmp_path / "array.npz"
    (np.savez_compressed if compressed else np.savez)(path, values=np.arange(60).reshape(6, 10))
    plain = io.BytesIO()
    np.save(plain, np.arange(60))
    draw = np.random.default_rng(0)
    failed = 0
    for whole in (path.read_bytes(), plain.getvalue()):
        for _ in range(300):
            start, length = draw.integers(len(whole)), draw.integers(1, 60)
            fill = (b"\0", b"(", b"'", b"\\", b"\xff", b"1 ")[draw.integers(6)]
            torn = whole[:start] + (fill * 60)[:length] + whole[start + length :]
            try:
                found = np.load(io.BytesIO(torn), allow_pickle=False)
                _ = found["values"] if isinstance(found, np.lib.npyio.NpzFile) else found
            except DAMAGED_ARRAYS:
                failed += 1
    assert failed > 100
