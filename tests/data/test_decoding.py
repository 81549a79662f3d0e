"""Masks of all kinds of files give the numbers that are stored; damage is noticed."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from segkd.data import decoding
from segkd.data.lane_files import read_lane_mask
from segkd.data.reading import (
    SampleError,
    detail_doubts,
    image_doubts,
    mask_doubts,
    read_ids,
    read_image,
    read_mask,
)

IDS = np.arange(12, dtype=np.uint8).reshape(3, 4) % 4
PALETTE = [255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9]


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def grey_png(depth, rows, width):
    """A PNG of 1, 2 or 4 bits, which neither Pillow nor OpenCV writes."""
    header = struct.pack(">IIBBBBB", width, len(rows), depth, 0, 0, 0, 0)
    raw = b"".join(b"\0" + bytes(row) for row in rows)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("ending", ["png", "gif", "bmp", "tif"])
@pytest.mark.parametrize("kind", ["palette", "grey"])
def test_indexed_and_grey_files_give_their_numbers(ending, kind, tmp_path):
    image = Image.fromarray(IDS)
    if kind == "palette":
        image = image.convert("P")
        image.putpalette(PALETTE)
    image.save(tmp_path / f"m.{ending}")
    assert np.array_equal(read_ids(tmp_path / f"m.{ending}"), IDS)


@pytest.mark.parametrize("ending", ["png", "bmp", "tif"])
def test_a_bit_is_zero_or_one(ending, tmp_path):
    Image.fromarray(IDS > 1).convert("1").save(tmp_path / f"m.{ending}")
    assert np.array_equal(read_ids(tmp_path / f"m.{ending}"), IDS > 1)


@pytest.mark.parametrize(
    ("depth", "rows", "wanted"),
    [
        (1, [[0b01010000]], [[0, 1, 0, 1]]),
        (2, [[0b00011011]], [[0, 1, 2, 3]]),
        (4, [[0x01, 0x2F]], [[0, 1, 2, 15]]),
    ],
)
def test_few_bits_are_the_numbers_that_they_say(depth, rows, wanted, tmp_path):
    (tmp_path / "m.png").write_bytes(grey_png(depth, rows, 4))
    assert read_ids(tmp_path / "m.png").tolist() == wanted


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_ids_written_several_times(mode, tmp_path):
    Image.fromarray(IDS).convert(mode).save(tmp_path / "m.png")
    assert np.array_equal(read_ids(tmp_path / "m.png"), IDS)
    assert np.array_equal(read_lane_mask(tmp_path / "m.png", 4), IDS)
    assert read_mask(tmp_path / "m.png").ndim == 3  # where colours are meant, these are greys


def test_sixteen_bits_stay(tmp_path):
    cv2.imwrite(str(tmp_path / "m.png"), IDS.astype(np.uint16) * 1000)
    assert read_ids(tmp_path / "m.png").max() == 3000


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_bytes_behind_a_whole_file_are_no_fault(ending, tmp_path):
    path = tmp_path / f"m.{ending}"
    cv2.imwrite(str(path), np.kron(IDS, np.ones((9, 9), np.uint8)) * 60)
    wanted = read_image(path)
    path.write_bytes(path.read_bytes() + bytes(200))
    assert np.array_equal(read_image(path), wanted)
    assert read_mask(path).shape == wanted.shape[:2]


def test_every_flipped_byte_of_a_png_is_noticed(tmp_path):
    path = tmp_path / "m.png"
    draw = np.random.default_rng(0)
    cv2.imwrite(str(path), draw.integers(0, 5, (20, 30), dtype=np.uint8))
    whole = path.read_bytes()
    for position in range(8, len(whole) - 12):
        broken = bytearray(whole)
        broken[position] ^= 0x10
        path.write_bytes(broken)
        with pytest.raises(SampleError, match=r"m\.png: cannot be read: it is (damaged|cut off)"):
            read_ids(path)


def jpeg(path, size=(64, 96), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    pixels[-16:, -16:] = options.pop("corner", pixels[-16:, -16:])
    image = Image.fromarray(pixels).convert(options.pop("mode", "RGB"))
    image.save(path, quality=90, **options)
    return path.read_bytes()


@pytest.mark.parametrize(
    "options",
    [{}, {"subsampling": 0}, {"subsampling": 2, "restart_marker_blocks": 4}, {"orientation": 8}],
)
def test_a_cut_jpeg_that_ends_properly_is_refused(tmp_path, options):
    """As repair tools leave it: OpenCV fills the rest with grey and says nothing."""
    turn = options.pop("orientation", 1)
    tags = Image.Exif()
    tags[0x112] = turn
    data = jpeg(tmp_path / "a.jpg", exif=tags, **options)
    assert read_image(tmp_path / "a.jpg").shape == ((96, 64, 3) if turn == 8 else (64, 96, 3))
    for share in (0.4, 0.9):
        (tmp_path / "a.jpg").write_bytes(data[: int(share * len(data))] + b"\xff\xd9")
        with pytest.raises(SampleError, match=r"it is cut off: the rest is grey"):
            read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    "options",
    [{}, {"subsampling": 0}, {"restart_marker_blocks": 3}, {"mode": "L"}, {"mode": "CMYK"}],
    ids=str,
)
@pytest.mark.parametrize("progressive", [True, False], ids=["progressive", "baseline"])
def test_wherever_a_jpeg_is_cut_it_is_refused(tmp_path, progressive, options):
    """With a proper end; sizes are no multiples of a block's, and nothing of it is grey.

    What lacks nothing but a part of a baseline file's last block is not noticed.
    """
    path = tmp_path / "a.jpg"
    data = jpeg(path, (61, 99), progressive=progressive, **options)
    assert read_image(path).shape == (61, 99, 3)
    first = data.index(b"\xff\xda")
    for cut in np.random.default_rng(1).integers(first + 20, len(data) - 1000, 40):
        end = data[cut - 1 : cut] == b"\xff"  # the byte before a marker's code or a stuffed zero
        path.write_bytes(data[: cut - end] + b"\xff\xd9")
        if not between_scans(data, cut):
            with pytest.raises(SampleError, match=r"a\.jpg: cannot be read: it is cut off"):
                read_image(path)


def scans(data):
    """Where the scans of a JPEG begin."""
    return [at for at in range(len(data) - 1) if data[at : at + 2] == b"\xff\xda"]


def between_scans(data, cut):
    """Whether everything up to ``cut`` is whole scans and, at most, parts before the next."""
    return any(data.rfind(b"\xff\xc4", 0, at) <= cut <= at + 14 for at in scans(data))


def test_a_progressive_jpeg_that_ends_between_two_scans_is_doubted(tmp_path):
    """It is a valid file: some programs may have meant it."""
    path = tmp_path / "a.jpg"
    data = jpeg(path, progressive=True)
    assert detail_doubts(path) == ""
    for begin in scans(data)[1:]:
        table = data.rfind(b"\xff\xc4", 0, begin)
        path.write_bytes(data[: table if table > scans(data)[0] else begin] + b"\xff\xd9")
        assert "a progressive JPEG that ends before its last scan" in detail_doubts(path)
        assert read_image(path).shape == (64, 96, 3)


def test_a_jpeg_is_looked_at_once_in_a_process(tmp_path, monkeypatch):
    """What is added is two decodings for each progressive file, not for each time it is read."""
    looked = []
    monkeypatch.setattr(decoding, "breaks_off", lambda data, end: looked.append(end))
    monkeypatch.setattr(decoding, "_WHOLE", set())
    for name in ("a.jpg", "b.jpg"):
        jpeg(tmp_path / name, (64 + len(looked), 96), progressive=True)
        for _ in range(3):
            read_image(tmp_path / name)
    assert len(looked) == 2


@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 4}, {"progressive": True}])
def test_a_whole_jpeg_may_end_in_grey(tmp_path, options):
    data = jpeg(tmp_path / "a.jpg", corner=128, **options)
    assert (read_image(tmp_path / "a.jpg")[-4:, -4:] == 128).all()
    (tmp_path / "a.jpg").write_bytes(data + bytes(50))
    assert (read_image(tmp_path / "a.jpg")[-4:, -4:] == 128).all()


def test_a_preview_does_not_hide_that_a_jpeg_is_cut_off(tmp_path):
    path, preview = tmp_path / "x.jpg", io.BytesIO()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    image.resize((8, 8)).save(preview, "JPEG")
    image.save(path, exif=b"Exif\0\0" + preview.getvalue())
    assert read_image(path).shape == (64, 64, 3)
    path.write_bytes(path.read_bytes()[:-50])
    assert b"\xff\xd9" in path.read_bytes()
    with pytest.raises(SampleError, match="it is cut off"):
        read_image(path)


def test_pointers_of_large_file_stores_are_named(tmp_path):
    (tmp_path / "a.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(SampleError, match=r"pointer of a large-file store .git lfs pull"):
        read_image(tmp_path / "a.png")


def test_doubts(tmp_path):
    cv2.imwrite(str(tmp_path / "m.jpg"), IDS)
    cv2.imwrite(str(tmp_path / "m.png"), IDS)
    assert "JPEG, whose compression changes ids" in mask_doubts(tmp_path / "m.jpg")
    assert mask_doubts(tmp_path / "m.png") == ""
    for value, doubt in ((4095, "lower 12"), (1023, "lower 10"), (60000, ""), (0, "")):
        cv2.imwrite(str(tmp_path / "x.png"), np.full((4, 4, 3), value, np.uint16))
        assert doubt in image_doubts(tmp_path / "x.png") and bool(doubt) == bool(
            image_doubts(tmp_path / "x.png")
        )
    assert image_doubts(tmp_path / "m.png") == ""
