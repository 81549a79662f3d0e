"""The fast decoder of PNG gives OpenCV's pixels, for what it can decode, and may be missing."""

import struct
import zlib

import cv2
import numpy as np
import pytest

from segkd.data import png
from segkd.data.reading import SampleError, read_ids, read_image

DRAW = np.random.default_rng(0)
IMAGE = cv2.GaussianBlur(DRAW.integers(0, 256, (37, 53, 3), np.uint8), (5, 5), 0)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def file_of(kind, depth, rows, *others, interlaced=0):
    """A PNG of the colour type ``kind``; rows (H, bytes) are not filtered."""
    height, channels = len(rows), {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    width = rows.shape[1] * 8 // (depth * channels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced))
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = *others, chunk(b"IDAT", body[:9]), chunk(b"IDAT", body[9:]), chunk(b"IEND", b"")
    return png.SIGNATURE + header + b"".join(parts)


def encoded(image, *options):
    return cv2.imencode(".png", image, options)[1].tobytes()


BYTES = IMAGE.reshape(len(IMAGE), -1)
ALPHA = DRAW.integers(0, 256, (9, 11 * 4), np.uint8)
PHOTOGRAPHS = {  # what the fast decoder is for
    "written by OpenCV": encoded(IMAGE),
    "all filters": encoded(IMAGE, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_FILTERED),
    "in parts": file_of(2, 8, BYTES),
    "gamma": file_of(2, 8, BYTES, chunk(b"gAMA", struct.pack(">I", 90000))),
    "significant bits": file_of(2, 8, BYTES, chunk(b"sBIT", bytes((5, 6, 5)))),
    "resolution": file_of(2, 8, BYTES, chunk(b"pHYs", struct.pack(">IIB", 9, 9, 1))),
}
OTHERS = {
    "grey": encoded(IMAGE[..., 0]),
    "grey and alpha": file_of(4, 8, ALPHA),
    "colours and alpha": file_of(6, 8, ALPHA),
    "16 bits": encoded(IMAGE.astype(np.uint16) * 257 - 99),
    "16 bits, grey": encoded(IMAGE[..., 0].astype(np.uint16) * 257 - 99),
    "palette": file_of(3, 8, IMAGE[..., 0] % 5, chunk(b"PLTE", bytes(range(15)))),
    "4 bits, palette": file_of(3, 4, IMAGE[..., 0] % 5, chunk(b"PLTE", bytes(range(48)))),
    "1 bit": file_of(0, 1, IMAGE[..., 0]),
    "a transparent colour": file_of(2, 8, BYTES, chunk(b"tRNS", bytes(6))),
    "turned": file_of(
        *(2, 8, BYTES),
        chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
    ),
}


@pytest.fixture(autouse=True)
def fresh():
    png._loader.cache_clear()
    yield
    png._loader.cache_clear()


@pytest.mark.parametrize("name", [*PHOTOGRAPHS, *OTHERS])
def test_the_pixels_are_those_of_opencv(name, tmp_path):
    pytest.importorskip("pyspng", reason="pip install 'segkd[fast]'")
    data = {**PHOTOGRAPHS, **OTHERS}[name]
    (tmp_path / "a.png").write_bytes(data)
    wanted = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    found = read_image(tmp_path / "a.png")
    assert found.dtype == np.uint8 and found.flags.writeable and found.flags.c_contiguous
    assert np.array_equal(found[..., ::-1], wanted)
    assert (png.fast_rgb(data) is not None) == (name in PHOTOGRAPHS)


@pytest.mark.parametrize("values", [IMAGE[..., 0], IMAGE[..., 0].astype(np.uint16) * 257])
def test_masks_are_read_as_stored(values, tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(values))
    assert np.array_equal(read_ids(tmp_path / "a.png"), values)


def test_without_it_opencv_decodes(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyspng", None)
    (tmp_path / "a.png").write_bytes(PHOTOGRAPHS["in parts"])
    assert png.fast_rgb(PHOTOGRAPHS["in parts"]) is None
    assert np.array_equal(read_image(tmp_path / "a.png"), IMAGE)  # file_of wrote RGB


def test_what_it_cannot_decode_is_left_to_opencv(tmp_path, monkeypatch):
    def fails(data):
        raise RuntimeError("a bug")

    monkeypatch.setattr(png, "_loader", lambda: fails)
    (tmp_path / "a.png").write_bytes(PHOTOGRAPHS["in parts"])
    assert np.array_equal(read_image(tmp_path / "a.png"), IMAGE)


def test_damage_is_told_as_before(tmp_path):
    short = png.SIGNATURE + PHOTOGRAPHS["in parts"][8:33] + chunk(b"IDAT", zlib.compress(b"\0\0"))
    for data in (PHOTOGRAPHS["in parts"][:-20], short + chunk(b"IEND", b"")):
        (tmp_path / "a.png").write_bytes(data)
        with pytest.raises(SampleError, match=r"a\.png: cannot be read"):
            read_image(tmp_path / "a.png")
