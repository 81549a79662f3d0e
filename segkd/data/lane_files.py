"""The base of lane sets on disk: reading samples, image sizes, and removed rows."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from segkd.data.base import DataConfig, Sample
from segkd.data.findings import Finding
from segkd.data.lane_base import LaneDataset, lane_classes, lane_palette
from segkd.data.lane_masks import Slots, painted
from segkd.data.paired import PairedDataset
from segkd.data.reading import SampleError, header_size, read_ids, read_image, size_text
from segkd.errors import DataError


class LaneFiles(LaneDataset, PairedDataset):
    """Base of lane sets on disk; subclasses implement ``_find``, ``_slots`` and ``annotation``.

    ``pairs`` are images and annotation files, or None for unlabelled splits.

    Attributes:
        curved: whether lanes are painted as smooth curves.
    """

    curved = True

    def __init__(self, config: DataConfig, split: str) -> None:
        super().__init__(config, split)
        sides = self.config.num_lanes, self.config.left_of_car
        self.classes, self.palette = lane_classes(*sides), lane_palette(*sides)

    def read_unlabelled(self, index: int) -> Sample:
        """The image alone, without the ``cut_top`` rows. Raises DataError."""
        path = self.pairs[index][0]
        if not path.is_file():
            raise self._no_image(index)
        image = below_the_cut(read_image(path), self.config.cut_top, path)
        return Sample(image, None, str(self.entry(index)))

    def read(self, index: int) -> Sample:
        """Image, class map and lanes by slot, without the ``cut_top`` rows. Raises DataError."""
        path, annotation = self.pairs[index]
        if annotation is None:
            return self.read_unlabelled(index)
        if not path.is_file():
            raise self._no_image(index)
        image = read_image(path)
        height, width = image.shape[:2]
        size, cut = (height, width), self.config.cut_top
        seen = below_the_cut(image, cut, path)
        slots = self._slots(index, size)
        mask = self._mask(index)
        if mask is None:
            width, left = self.config.lane_width, self.config.left_of_car
            mask = painted(slots, size, width, left=left, curved=self.curved)
        elif mask.shape != size:
            found = f"the mask is {size_text(mask)}, but its image {path} is {size_text(image)}"
            raise SampleError(annotation, found, "Repair or remove the pair.")
        if cut:
            lower = np.array([0, cut], np.float32)
            slots = tuple(None if lane is None else lane - lower for lane in slots)
        return Sample(seen, mask[cut:], str(self.entry(index)), slots)

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) of the stored image, from the file's header. Raises SampleError."""
        path = self.pairs[index][0]
        if not path.is_file():
            raise self._no_image(index)
        return header_size(path)

    def annotation_file(self, index: int) -> Path:
        """The annotation file of an image, which must exist. Raises SampleError if it does not."""
        image, path = self.pairs[index]
        if path is None:
            raise SampleError(image, "the image has no annotation", "Use an annotated split.")
        if not path.is_file():
            raise missing_annotation(path)
        return path

    def entry(self, index: int) -> Path:
        """Path of the image below the root of the set."""
        return self.pairs[index][0].relative_to(self.root)

    def flags(self, index: int) -> tuple[int, ...] | None:
        """Existence by slot according to a list file, or None."""
        return None

    def where(self, index: int) -> str:
        """The annotation of an image, for messages."""
        return str(self.pairs[index][1])

    def has_both(self, index: int) -> bool:
        """Whether an image has a stored mask in addition to its lane file."""
        return self._mask(index) is not None

    def raw_lanes(self, index: int) -> list[np.ndarray]:
        """All annotated lines (n, 2) of an image, for checks; points may be outside the image."""
        return self.annotation(index).lanes

    def problems(self) -> Iterator[Finding]:
        """Findings about the lists of the set."""
        return iter(())

    def _slots(self, index: int, size: tuple[int, int]) -> Slots:
        raise NotImplementedError

    def _mask(self, index: int) -> np.ndarray | None:
        """The stored class map (H, W), or None if lanes are painted."""
        return None

    def _no_image(self, index: int) -> SampleError:
        path = self.pairs[index][0]
        repair = "Fetch the set again, or remove the image from the list."
        return SampleError(path, "there is no such image", repair)


def below_the_cut(image: np.ndarray, cut_top: int, path: Path) -> np.ndarray:
    """An image (H, W, 3) without the ``cut_top`` rows. Raises DataError if no row is left."""
    if cut_top >= image.shape[0]:
        raise DataError(
            f"data.cut_top={cut_top} leaves nothing of {path}, which is {size_text(image)}: set "
            f"it to less than {image.shape[0]}"
        )
    return image[cut_top:]


def missing_annotation(path: Path) -> SampleError:
    """The error for an image without annotation, which is not an image without lanes."""
    return SampleError(
        path,
        "the annotation is missing",
        "Fetch the set again; if the image has no lane, create an empty file of this name.",
    )


def read_lane_mask(path: Path, num_lanes: int, *, binary: bool = False) -> np.ndarray:
    """Reads a class map (H, W) uint8.

    Args:
        path: of the mask.
        num_lanes: largest valid id.
        binary: whether to map all nonzero values to 1.

    Raises:
        SampleError: the file is missing, has colours, or ids above ``num_lanes``.
    """
    mask = read_ids(path)
    if mask.ndim != 2:
        text = f"the mask has colours, expected ids 0 to {num_lanes}"
        raise SampleError(path, text, "Use masks of ids, or remove them so that lanes are painted.")
    if binary:
        return (mask != 0).astype(np.uint8)
    if int(mask.max(initial=0)) > num_lanes:
        text = f"the mask has id {int(mask.max())}, expected 0 to data.num_lanes={num_lanes}"
        raise SampleError(path, text, "Set data.num_lanes to the masks' number of lanes.")
    return mask.astype(np.uint8, copy=False)
