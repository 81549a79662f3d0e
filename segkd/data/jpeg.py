"""Structure of JPEG files: the end of the image, and data missing from scans."""

import io
import math
import re
from dataclasses import dataclass, field
from itertools import product

import numpy as np

START = b"\xff\xd8"
_EOI, _SOS, _DRI = 0xD9, 0xDA, 0xDD
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF0 … SOF15
_PROGRESSIVE = 0xC2  # with Huffman codes
_MARKER = re.compile(rb"\xff+[^\0\xd0-\xd7\xff]")  # in a scan: no stuffed byte, no restart
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_MORE = bytes(range(1, 200))  # contains no marker
_COEFFICIENTS = 64


@dataclass
class Layout:
    """The markers of a file.

    Attributes:
        kind: code of the frame's marker; 0 without a frame.
        height, width: of the frame.
        sampling: horizontal and vertical factor by component.
        end: position of the marker that ends the image; None if there is none.
        gaps: whether a scan has fewer restart markers than intervals.
        bits: number of unknown low bits, by component and coefficient.
    """

    kind: int = 0
    height: int = 0
    width: int = 0
    sampling: dict[int, tuple[int, int]] = field(default_factory=dict)
    end: int | None = None
    gaps: bool = False
    bits: dict[tuple[int, int], int] = field(default_factory=dict)

    @property
    def progressive(self) -> bool:
        """Whether several scans refine one image."""
        return self.kind == _PROGRESSIVE

    @property
    def complete(self) -> bool:
        """Whether the scans contain all bits of every coefficient."""
        spots = product(self.sampling, range(_COEFFICIENTS))
        return all(self.bits.get(spot) == 0 for spot in spots)

    def units(self, components: bytes) -> int:
        """Number of coded units in a scan of these components; 0 if unknown."""
        if not self.sampling or any(component not in self.sampling for component in components):
            return 0
        across, down = (max(factors) for factors in zip(*self.sampling.values(), strict=True))
        if not across or not down:
            return 0
        if len(components) > 1:
            return math.ceil(self.width / (8 * across)) * math.ceil(self.height / (8 * down))
        own = self.sampling[components[0]]
        columns, rows = (
            math.ceil(math.ceil(size * factor / most) / 8)
            for size, factor, most in zip(
                (self.width, self.height), own, (across, down), strict=True
            )
        )
        return columns * rows


def layout(data: bytes) -> Layout:
    """Parses the markers of the image, without previews before it and bytes after it."""
    found, interval, position = Layout(), 0, len(START)
    while marker := _MARKER.search(data, position):
        code, begin = data[marker.end() - 1], marker.end()
        if code == _EOI:
            found.end = marker.start()
            break
        position = begin + int.from_bytes(data[begin : begin + 2], "big")
        part = data[begin + 2 : position]
        if code in _FRAMES and not found.kind:
            found.kind = code
            found.height, found.width = (int.from_bytes(part[i : i + 2], "big") for i in (1, 3))
            factors = ((both >> 4, both & 15) for both in part[7::3])
            found.sampling = dict(zip(part[6::3], factors, strict=False))
        elif code == _DRI:
            interval = int.from_bytes(part[:2], "big")
        elif code == _SOS and len(part) > 3:
            _scan(found, part, data, position, interval)
    return found


def _scan(found: Layout, part: bytes, data: bytes, position: int, interval: int) -> None:
    """Records the content of one scan, whose data begin at ``position``."""
    components, (first, last, bits) = part[1 : 1 + 2 * part[0] : 2], part[-3:]
    found.bits |= dict.fromkeys(product(components, range(first, last + 1)), bits & 15)
    if interval:
        after = _MARKER.search(data, position)
        restarts = len(_RESTART.findall(data, position, after.start() if after else len(data)))
        found.gaps |= restarts < math.ceil(found.units(components) / interval) - 1


def breaks_off(data: bytes, end: int) -> bool:
    """Whether the last scan is incomplete, so that bytes inserted at its end change the image.

    After a complete scan, which may end in grey, decoders skip such bytes. Pillow decodes, since
    with OpenCV libjpeg prints warnings about them; files that Pillow cannot read pass.

    Args:
        data: of the file.
        end: position of the marker that ends the image.
    """
    plain, more = _pixels(data), _pixels(data[:end] + _MORE + data[end:])
    return plain is not None and more is not None and not np.array_equal(plain, more)


def _pixels(data: bytes) -> np.ndarray | None:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image)
    except Exception:  # Pillow's plug-ins raise arbitrary exceptions
        return None
