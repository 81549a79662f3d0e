"""Writes tests/files/opencv4_lines.npz: what OpenCV 4 paints for long lanes of two points.

    python -m venv /any/venv && /any/venv/bin/pip install opencv-python-headless==4.11.0.86 numpy
    /any/venv/bin/python tests/make_opencv4_lines.py tests/files/opencv4_lines.npz

Per pair of segments, for widths 1 to 60 and six image sizes: both ends of both (int16), the size,
the width, a checksum of each painting and the number of common pixels. The second segment of a
pair is close to the first, so that their IoU is between 0 and 1.
"""

import sys
import zlib

import cv2
import numpy as np

SIZES = [(590, 1640), (720, 1280), (256, 256), (480, 300), (35, 400), (9, 14)]
PAIRS = 6  # of each width and size
WIDTHS = range(1, 61)


def segment(rng, size, number):
    """Ends inside, ends beyond the image, and upright, level or short ones: (2, 2) int."""
    height, width = size
    far = [0.0, 1.0, 12.0][number % 3]  # image sides that ends may be outside
    low, high = (-far * width, -far * height), ((1 + far) * width, (1 + far) * height)
    ends = rng.uniform(low, high, (2, 2)).clip(-30_000, 30_000)
    if number == 4:
        ends[1, rng.integers(2)] = ends[0, rng.integers(2)]
    if number == 5:
        ends[0] = rng.uniform((-9, -9), (width + 9, height + 9))
        ends[1] = ends[0] + rng.uniform(-12, 12, 2)
    return np.rint(ends).astype(np.int16)


def grazing(rng, width):
    """A short segment above the image, whose rectangle ends less than half a pixel above it."""
    while True:
        ends = rng.integers(-12, 24, 2) + rng.integers(-20, 4, (2, 2))
        dx, dy = (ends[1] - ends[0]).tolist()
        if (
            dx
            and dy
            and -0.5 < ends[:, 1].max() + (width + 1) // 2 * abs(dx) / np.hypot(dx, dy) < 0
        ):
            return ends.astype(np.int16)


def painted(ends, size, width):
    mask = np.zeros(size, np.uint8)
    return cv2.line(mask, *(tuple(map(int, end)) for end in ends), 1, width)


def checksum(mask):
    return zlib.crc32(np.packbits(mask.astype(bool)).tobytes())


def main(path):
    assert cv2.__version__.startswith("4."), f"this is OpenCV {cv2.__version__}"
    rng = np.random.default_rng(0)
    rows = {"ends": [], "size": [], "width": [], "checksums": [], "shared": []}
    for width in WIDTHS:
        for size in SIZES:
            for number in range(PAIRS):
                first = segment(rng, size, number)
                second = first + np.rint(rng.normal(0, width / 4 + 1, (2, 2))).astype(np.int16)
                if size == SIZES[-1] and 1 < width < 40:
                    first, second = grazing(rng, width), grazing(rng, width)
                masks = [painted(ends, size, width) for ends in (first, second)]
                rows["ends"].append([first, second])
                rows["size"].append(size)
                rows["width"].append(width)
                rows["checksums"].append([checksum(mask) for mask in masks])
                rows["shared"].append(int((masks[0] & masks[1]).sum()))
    types = {"checksums": np.uint32, "shared": np.int32}
    arrays = {name: np.array(row, types.get(name, np.int16)) for name, row in rows.items()}
    np.savez_compressed(path, opencv=cv2.__version__, **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
