"""Bytes of image files to arrays: whole files only, and ids as they are stored."""

import io
import re
import zlib

import numpy as np

from segkd.data.jpeg import START as JPEG
from segkd.data.jpeg import breaks_off, layout

PNG = b"\x89PNG\r\n\x1a\n"
_END_OF_JPEG = b"\xff\xd9"
_FILL, _ENDS = 128, (slice(None, 4), slice(-4, None))
_WHOLE: set[tuple[int, int]] = set()  # checksums and lengths of JPEG files that were looked at
_BY_PIL = (b"GIF8", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # GIF, BMP, TIFF, BigTIFF
_GREY, _PALETTE = 0, 3  # colour types of a PNG
_LFS = re.compile(rb"version https://git-lfs|(\.\./)*\.?/?(git/)?annex/objects/")


class Undecodable(Exception):
    """What is wrong with the bytes of a file, as half a sentence."""


def require_whole(data: bytes) -> None:
    """Raises Undecodable for what is empty, cut off or damaged.

    Decoders fill what is cut off with grey, turn damage into noise, and say nothing. Bytes that
    follow a whole image, as some cameras and disks leave, are no fault.
    """
    if not data:
        raise Undecodable("it is empty")
    if _LFS.match(data):
        raise Undecodable("it is a pointer of a large-file store (git lfs pull, git annex get)")
    if data.startswith(PNG):
        _require_whole_png(data)
    elif data.startswith(JPEG) and data.find(_END_OF_JPEG, _first_scan(data)) < 0:
        raise Undecodable("it is cut off")


def decode(data: bytes, flags: int) -> np.ndarray:
    """OpenCV's array. Raises Undecodable, also for a JPEG whose image data break off."""
    array = _by_opencv(data, flags)
    if data.startswith(JPEG):
        mark = zlib.crc32(data), len(data)
        if mark not in _WHOLE:  # once in a process, since a training reads its files again
            _require_all_data(data, array)
            _WHOLE.add(mark)
    return array


def decode_mask(data: bytes) -> np.ndarray:
    """(H, W) stored numbers, or (H, W, C) colours in the order BGR. Raises Undecodable.

    Indexed PNG, TIFF, BMP and GIF give their indices, files of 1, 2 or 4 bits the numbers that
    these bits say: OpenCV would answer colours, and 255 for a bit.
    """
    import cv2

    if data.startswith(PNG) and len(data) > 25:
        depth, kind = data[24], data[25]
        if kind == _PALETTE:
            return _by_pil(data)
        array = decode(data, cv2.IMREAD_UNCHANGED)
        return array // (255 // ((1 << depth) - 1)) if kind == _GREY and depth < 8 else array
    if data.startswith(_BY_PIL):
        array = _by_pil(data)
        if array is not None:
            return array
    return decode(data, cv2.IMREAD_UNCHANGED)


def is_lossy(data: bytes) -> bool:
    """Whether the numbers of a mask did not survive: JPEG."""
    return data.startswith(JPEG)


def lacks_detail(data: bytes) -> bool:
    """Whether a progressive JPEG ends between two scans: it is coarse, but not damaged."""
    found = layout(data) if data.startswith(JPEG) else None
    return found is not None and found.progressive and not found.complete


def bits_in_use(data: bytes) -> int | None:
    """Of an image of 16 bits, how many its brightest value needs; None for other images."""
    import cv2

    sixteen = (data.startswith(PNG) and data[24:25] == b"\x10") or data.startswith(_BY_PIL[2:])
    if not sixteen:
        return None
    array = decode(data, cv2.IMREAD_UNCHANGED)
    return int(array.max(initial=0)).bit_length() if array.dtype == np.uint16 else None


def _by_opencv(data: bytes, flags: int) -> np.ndarray:
    import cv2

    try:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise Undecodable(error.err) from None
    if array is None:
        raise Undecodable("it cannot be decoded")
    return array


def _ends_in_grey(array: np.ndarray) -> bool:
    """Whether a corner is what decoders fill in where data lack; which one depends on the turn."""
    corners = (array[rows, columns] for rows in _ENDS for columns in _ENDS)
    return any((corner == _FILL).all() for corner in corners)


def _require_all_data(data: bytes, array: np.ndarray) -> None:
    """Raises Undecodable for a JPEG that decoders fill up, although it ends properly.

    Of most files the markers are looked at only. Those whose end is grey, progressive ones, where
    the rest of a scan is coarse, and print colours, where it is of some other colour, cost two
    decodings.
    """
    found = layout(data)
    if found.end is None:
        raise Undecodable("it is cut off")
    doubtful = found.progressive or len(found.sampling) == 4 or _ends_in_grey(array)
    if found.gaps or (doubtful and breaks_off(data, found.end)):
        rest = "the rest is coarse" if found.progressive else "the rest is grey"
        raise Undecodable(f"it is cut off: {rest}, although the file ends properly")


def _by_pil(data: bytes) -> np.ndarray | None:
    """Indices or bits; None for what is neither."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode not in ("P", "1") and not (image.format == "GIF" and image.mode == "L"):
                return None
            return np.array(image, dtype=np.uint8)
    except Exception as error:  # Pillow's plug-ins raise whatever damage leads to
        raise Undecodable(str(error) or type(error).__name__) from None


def _require_whole_png(data: bytes) -> None:
    position = len(PNG)
    while True:
        length = int.from_bytes(data[position : position + 4], "big")
        kind, end = data[position + 4 : position + 8], position + 12 + length
        if len(data) < end or len(kind) < 4:
            raise Undecodable("it is cut off")
        stored = int.from_bytes(data[end - 4 : end], "big")
        if zlib.crc32(data[position + 4 : end - 4]) != stored:
            name = kind.decode("ascii", "replace")
            raise Undecodable(f"it is damaged: the checksum of its part {name} is wrong")
        if kind == b"IEND":
            return
        position = end


def _first_scan(data: bytes) -> int:
    """Where the image data of a JPEG begin: previews in the parts before have ends of their own."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        if data[position + 1] == 0xDA:
            return position
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return min(position, len(data))
