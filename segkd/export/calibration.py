"""Calibration images of int8 files, evenly spread over a dataset, a folder or a video.

The first ones would be of one street, or of a video's first seconds.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from segkd.data.base import Dataset
from segkd.errors import DataError
from segkd.inference.media import open_source

CALIBRATION_IMAGES = 64  # if no number is given, also of `segkd export`


def spread_images(dataset: Dataset, count: int, *, skip: bool) -> list[np.ndarray]:
    """Evenly spread images (H, W, 3) uint8 RGB of a dataset.

    Args:
        dataset: of the training.
        count: number of images, at most that of the dataset.
        skip: take the next image instead of one that cannot be read.

    Raises:
        DataError: an image cannot be read; with ``skip``, none can.
    """
    images = []
    for part in _parts(len(dataset), count):
        for index in part:  # the next one stands in for one that is broken
            try:
                images.append(dataset.read_unlabelled(index).image)
                break
            except DataError:
                if not skip:
                    raise
    if count and not images:
        dataset.read_unlabelled(0)  # says what is wrong
    return images


def spread_frames(source: str | Path, count: int = CALIBRATION_IMAGES) -> list[np.ndarray]:
    """Evenly spread images (H, W, 3) uint8 RGB of a folder or video, as far as they can be read.

    Args:
        source: the folder, or a file.
        count: how many, at most.

    Raises:
        SegKDError: there is no such folder or file, or no image in it.
    """
    opened = open_source(source)
    parts = list(_parts(opened.count, count))
    if opened.kind == "video":  # one that does not tell its length begins with its first frames
        found = opened.frames_at([part[0] for part in parts]) if parts else opened.frames()
        readable = (frame.image for frame in found if frame.image is not None)
        return list(islice(readable, count))
    tried = (opened.frames_at(part) for part in parts)
    first = (next((one.image for one in part if one.image is not None), None) for part in tried)
    return [image for image in first if image is not None]


def _parts(length: int, count: int) -> Iterator[range]:
    """``length`` indices in ``count`` ranges of equal length, or in one for each index."""
    count = min(count, length)
    for number in range(count):
        yield range(number * length // count, (number + 1) * length // count)
