"""PNG photographs by the fastest decoder that is installed.

pyspng (extra ``fast``; https://github.com/nurpax/pyspng) needs two thirds of OpenCV's time. It gets
only files of which both make the same pixels: 8-bit RGB without anything that changes how the image
is shown. Everything else, and what it cannot decode, is left to OpenCV.
"""

import functools
from collections.abc import Callable, Iterator

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE = 0, 2, 3  # colour types

# Parts that leave 8-bit RGB as it is. Not among them: transparency (tRNS), orientation (eXIf) and
# animation (acTL), which OpenCV heeds, and parts that are yet to be invented.
_HARMLESS = {
    *(b"IHDR", b"IDAT", b"IEND", b"tEXt", b"zTXt", b"iTXt", b"tIME", b"pHYs"),
    *(b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT", b"hIST"),
}


def depth_and_kind(data: bytes) -> tuple[int, int] | None:
    """Bits per sample and colour type of a PNG file; None for other files."""
    return (data[24], data[25]) if data.startswith(SIGNATURE) and len(data) > 28 else None


def parts(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of the contents of each part of a PNG file, as far as they are whole."""
    position = len(SIGNATURE)
    while position + 12 <= len(data):
        start = position + 8
        end = start + int.from_bytes(data[position : position + 4], "big")
        if end + 4 > len(data):
            return
        yield data[position + 4 : start], start, end
        position = end + 4


def fast_rgb(data: bytes) -> np.ndarray | None:
    """(H, W, 3) uint8 RGB of a PNG photograph; None if OpenCV is to decode it.

    Args:
        data: of a file of any kind, whose checksums are right.
    """
    load = _loader()
    if load is None or depth_and_kind(data) != (8, RGB) or data[28]:  # interlaced
        return None
    if not all(name in _HARMLESS for name, _, _ in parts(data)):
        return None
    try:
        image = load(data)
    except Exception:  # OpenCV tells what is wrong, or is more lenient
        return None
    return image if image.ndim == 3 and image.dtype == np.uint8 else None


@functools.cache
def _loader() -> Callable[[bytes], np.ndarray] | None:
    try:
        import pyspng
    except Exception:  # not installed, or made for another NumPy
        return None
    return functools.partial(pyspng.load, format="RGB")
