"""What the lane sets on disk share: files to samples, sizes, and the rows that are cut."""

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
    """Base of the lane sets on disk; ``_find``, ``_slots`` and ``annotation`` must be written.

    ``pairs`` are images and annotation files, None for unlabelled splits.

    Attributes:
        curved: lanes are painted as smooth curves.
    """

    curved = True

    def __init__(self, config: DataConfig, split: str) -> None:
        self.classes = lane_classes(config.num_lanes)
        self.palette = lane_palette(config.num_lanes)
        super().__init__(config, split)

    def read_unlabelled(self, index: int) -> Sample:
        path = self.pairs[index][0]
        if not path.is_file():
            raise self._no_image(index)
        image = below_the_cut(read_image(path), self.config.cut_top, path)
        return Sample(image, None, str(self.entry(index)))

    def read(self, index: int) -> Sample:
        path, annotation = self.pairs[index]
        if annotation is None:
            return self.read_unlabelled(index)
        if not path.is_file():
            raise self._no_image(index)
        image = read_image(path)
        size, name = image.shape[:2], str(self.entry(index))
        below_the_cut(image, self.config.cut_top, path)
        slots = self._slots(index, size)
        mask = self._mask(index)
        if mask is None:
            mask = painted(slots, size, self.config.lane_width, curved=self.curved)
        elif mask.shape != size:
            found = f"the mask is {size_text(mask)}, but its image {path} is {size_text(image)}"
            raise SampleError(annotation, found, "Repair or remove the pair.")
        return self._below_the_cut(Sample(image, mask, name, slots))

    def image_size(self, index: int) -> tuple[int, int]:
        """Height and width of the stored image, from the file's header."""
        path = self.pairs[index][0]
        if not path.is_file():
            raise self._no_image(index)
        return header_size(path)

    def entry(self, index: int) -> Path:
        return self.pairs[index][0].relative_to(self.root)

    def flags(self, index: int) -> tuple[int, ...] | None:
        """Which slots exist by a list file, if that says so."""
        return None

    def where(self, index: int) -> str:
        """The annotation of an image, for messages."""
        return str(self.pairs[index][1])

    def has_both(self, index: int) -> bool:
        """Whether an image has a stored mask beside the lines of its lane file."""
        return self._mask(index) is not None

    def raw_lanes(self, index: int) -> list[np.ndarray]:
        """All annotated lines of an image, for the check; points may be anywhere."""
        return self.annotation(index).lanes

    def problems(self) -> Iterator[Finding]:
        """What is wrong with the set's lists."""
        return iter(())

    def _slots(self, index: int, size: tuple[int, int]) -> Slots:
        raise NotImplementedError

    def _mask(self, index: int) -> np.ndarray | None:
        """The stored class map, or None where lanes are painted."""
        return None

    def _no_image(self, index: int) -> SampleError:
        path = self.pairs[index][0]
        repair = "Fetch the set again, or take the image out of the list."
        return SampleError(path, "there is no such image", repair)

    def _below_the_cut(self, sample: Sample) -> Sample:
        cut = self.config.cut_top
        if not cut:
            return sample
        lower = np.array([0, cut], np.float32)
        lanes = tuple(None if lane is None else lane - lower for lane in sample.lanes)
        return Sample(sample.image[cut:], sample.label[cut:], sample.name, lanes)


def below_the_cut(image: np.ndarray, cut_top: int, path: Path) -> np.ndarray:
    """The rows of an image that networks see. Raises DataError if there are none."""
    if cut_top >= image.shape[0]:
        raise DataError(
            f"data.cut_top={cut_top} leaves nothing of {path}, which is {size_text(image)}: set "
            f"it to less than {image.shape[0]}"
        )
    return image[cut_top:]


def missing_annotation(path: Path) -> SampleError:
    """An image without its annotation is not an image without lanes."""
    return SampleError(
        path,
        "the annotation is missing",
        "Fetch the set again; if the image shows no lane, make an empty file of this name.",
    )


def read_lane_mask(path: Path, num_lanes: int, *, binary: bool = False) -> np.ndarray:
    """(H, W) uint8 class map. With ``binary`` whatever is not 0 becomes 1.

    Raises:
        SampleError: the file is missing, has colours, or ids above ``num_lanes``.
    """
    mask = read_ids(path)
    if mask.ndim != 2:
        text = f"the mask has colours, expected ids 0 to {num_lanes}"
        raise SampleError(path, text, "Use the masks of ids, or remove them to have lanes painted.")
    if binary:
        return (mask != 0).astype(np.uint8)
    if int(mask.max(initial=0)) > num_lanes:
        text = f"the mask has id {int(mask.max())}, expected 0 to data.num_lanes={num_lanes}"
        raise SampleError(path, text, "Set data.num_lanes to the masks' number of lanes.")
    return mask.astype(np.uint8, copy=False)
