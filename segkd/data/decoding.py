"""Bytes of image files to arrays: incomplete files are refused, and ids are read as stored."""

import io
import re
import zlib

import numpy as np

from segkd.data import png
from segkd.data.jpeg import START as JPEG
from segkd.data.jpeg import breaks_off, layout

PNG = png.SIGNATURE
_END_OF_JPEG = b"\xff\xd9"
_FILL, _ENDS = 128, (slice(None, 4), slice(-4, None))
_WHOLE: set[tuple[int, int]] = set()  # checksums and lengths of checked JPEG files
_BY_PIL = (b"GIF8", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # GIF, BMP, TIFF, BigTIFF
_LFS = re.compile(rb"version https://git-lfs|(\.\./)*\.?/?(git/)?annex/objects/")


class Undecodable(Exception):
    """The bytes of a file cannot be decoded; the reason is a clause without subject."""


def require_whole(data: bytes) -> None:
    """Checks that a file is complete, since decoders silently fill gaps with grey or noise.

    Bytes after a complete image, as some cameras and disks leave, are allowed.

    Raises:
        Undecodable: the file is empty, cut off or damaged.
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
    """Decodes an image with OpenCV.

    Args:
        data: of the file.
        flags: of ``cv2.imdecode``.

    Returns:
        (H, W) or (H, W, C), in the order BGR.

    Raises:
        Undecodable: not an image, or a JPEG with incomplete image data.
    """
    array = _by_opencv(data, flags)
    if data.startswith(JPEG):
        mark = zlib.crc32(data), len(data)
        if mark not in _WHOLE:  # once per process, since training reads files repeatedly
            _require_all_data(data, array)
            _WHOLE.add(mark)
    return array


def decode_rgb(data: bytes) -> np.ndarray:
    """A photograph as (H, W, 3) uint8 RGB, rotated according to its EXIF tag.

    Raises:
        Undecodable: as ``decode``.
    """
    import cv2

    image = png.fast_rgb(data)
    if image is None:
        image = decode(data, cv2.IMREAD_COLOR)
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)
    return image


def decode_mask(data: bytes) -> np.ndarray:
    """The stored values of a mask: (H, W) numbers, or (H, W, C) colours in the order BGR.

    Indexed PNG, TIFF, BMP and GIF yield indices, and files of 1, 2 or 4 bits the stored numbers,
    where OpenCV would return colours, and 255 for a bit.

    Raises:
        Undecodable: as ``decode``.
    """
    import cv2

    stored = png.depth_and_kind(data)
    if stored is not None and stored[1] != png.PALETTE:
        depth, kind = stored
        array = decode(data, cv2.IMREAD_UNCHANGED)
        return array // (255 // ((1 << depth) - 1)) if kind == png.GREY and depth < 8 else array
    if stored is not None or data.startswith(_BY_PIL):
        indices = _by_pil(data)
        if indices is not None:
            return indices
    return decode(data, cv2.IMREAD_UNCHANGED)


def is_lossy(data: bytes) -> bool:
    """Whether a mask is stored lossily, as JPEG."""
    return data.startswith(JPEG)


def lacks_detail(data: bytes) -> bool:
    """Whether a progressive JPEG ends between two scans: it is coarse but not damaged."""
    found = layout(data) if data.startswith(JPEG) else None
    return found is not None and found.progressive and not found.complete


def bits_in_use(data: bytes) -> int | None:
    """Of a 16-bit image, the number of bits that its maximum needs; None for other images."""
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
    """Whether a corner has the fill value of decoders; which one depends on the orientation."""
    corners = (array[rows, columns] for rows in _ENDS for columns in _ENDS)
    return any((corner == _FILL).all() for corner in corners)


def _require_all_data(data: bytes, array: np.ndarray) -> None:
    """Raises Undecodable for a JPEG with an end marker but incomplete image data.

    For most files only the markers are checked. Files with a grey corner, progressive ones (whose
    missing data are coarse) and CMYK ones (whose missing data have another colour) are decoded
    twice more.
    """
    found = layout(data)
    if found.end is None:
        raise Undecodable("it is cut off")
    doubtful = found.progressive or len(found.sampling) == 4 or _ends_in_grey(array)
    if found.gaps or (doubtful and breaks_off(data, found.end)):
        rest = "the rest is coarse" if found.progressive else "the rest is grey"
        raise Undecodable(f"it is cut off: {rest}, although the file ends properly")


def _by_pil(data: bytes) -> np.ndarray | None:
    """Indices or bits (H, W) uint8; None for other images."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode not in ("P", "1") and not (image.format == "GIF" and image.mode == "L"):
                return None
            return np.array(image, dtype=np.uint8)
    except Exception as error:  # Pillow's plug-ins raise arbitrary exceptions
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
    """Start of the image data of a JPEG; previews before it have their own end markers."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        if data[position + 1] == 0xDA:
            return position
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return min(position, len(data))
