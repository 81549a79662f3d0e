"""Whether CULane's lane files belong to images of the size at which they are scored."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from segkd.data.reading import header_size
from segkd.errors import DataError
from segkd.metrics.culane_text import lines_file, read_lanes

_LOOKED_AT = 100  # images, evenly spread: a wrong size shows in all of them
_FAR = 0.1  # of a side: annotators let lanes end a little beyond the image
_FEW = 0.05  # of the points


def size_doubts(entries: Sequence[str], annotations: Path, size: tuple[int, int]) -> Iterator[str]:
    """What speaks against a size of the images: images beside the annotations, and their points.

    Args:
        entries: images named as in CULane's list files.
        annotations: folder of the annotated ``.lines.txt`` files, perhaps with the images.
        size: (height, width) at which lanes are painted.

    Yields:
        Warnings.

    Raises:
        DataError: most points are outside of images of this size.
    """
    every = np.linspace(0, len(entries) - 1, min(_LOOKED_AT, len(entries))).round().astype(int)
    looked_at = [entries[index] for index in every]
    points = _points([annotations / lines_file(entry) for entry in looked_at])
    sides = np.array(size[::-1])
    outside = ((points < 0) | (points > sides)).any(1)
    if len(points) and 2 * outside.sum() > len(points):
        raise DataError(
            f"{100 * outside.mean():.0f} % of the annotated points are outside of images of "
            f"{_told(size)}, so that their lanes are not compared; points reach up to "
            f"{_told(points.max(0)[::-1].round())}. Give the images' --image-size HEIGHT WIDTH"
        )
    far = ((points < -_FAR * sides) | (points > (1 + _FAR) * sides)).any(1)
    if far.sum() > _FEW * len(points):
        yield (
            f"{100 * far.mean():.0f} % of the annotated points are far outside of images of "
            f"{_told(size)}: check --image-size HEIGHT WIDTH"
        )
    for image in (annotations / entry.lstrip("/") for entry in looked_at):
        own = _size(image)
        if own not in (None, size):
            yield (
                f"{image} has {_told(own)}, but lanes are scored in images of {_told(size)}: if "
                f"the lane files are of these images, give --image-size {own[0]} {own[1]}"
            )
            return


def _size(image: Path) -> tuple[int, int] | None:
    """(height, width) of an image; None where there is none that can be read: none is needed."""
    try:
        return header_size(image) if image.is_file() else None
    except DataError:
        return None


def _points(files: Sequence[Path]) -> np.ndarray:
    """All points (n, 2) of the files that exist."""
    lanes = [lane for file in files if file.is_file() for lane in read_lanes(file)]
    return np.concatenate([np.empty((0, 2), np.float32), *lanes])


def _told(size: Sequence[float] | np.ndarray) -> str:
    return f"height {size[0]:g} and width {size[1]:g}"
