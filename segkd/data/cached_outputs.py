"""Stored outputs of teachers for the samples of a batch, as the workers of a loader find them.

``views``: a sample is one of a fixed number of augmented views of its image, and the outputs are
those for just this view. ``images``: the outputs for the whole image, sampled where the pixels of
the crop come from (see ``prediction_crops``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from segkd.data.base import DataConfig
from segkd.data.output_files import OutputFolder, Stored, fingerprint
from segkd.data.prediction_crops import PlaceMap, extra_key

VIEW, IMAGE = "cache/view", "cache/image"  # of `Batch.extra`: number of the view, its fingerprint
LOGITS, EXIST, KNOWN, FOUND = "logits", "exist", "known", "found"  # parts, by `extra_key`
Kind = Literal["views", "images"]
_NEAR = 1e-3  # of a position: rounding


@dataclass(frozen=True)
class Views:
    """A fixed number of augmented views of each image, the same in all runs.

    Attributes:
        count: of each image; an epoch takes the next one.
        seed: of the views.
    """

    count: int
    seed: int

    def of(self, epoch: int, index: int) -> tuple[int, int]:
        """Number and augmentation seed of the view of an image in an epoch."""
        view = epoch % self.count
        return view, int(np.random.default_rng([self.seed, view, index, 2]).integers(2**62))


@dataclass(frozen=True)
class CacheFolder:
    """Where the outputs of one teacher are.

    Attributes:
        outputs: the files.
        kind: of which images they are.
        stride: pixels per position of the outputs for a crop.
    """

    outputs: OutputFolder
    kind: Kind
    stride: int


@dataclass
class CachedItem:
    """What is stored about one sample.

    Attributes:
        view: number of the view.
        image: its fingerprint; 0 if no teacher needs it.
        found: by teacher; None where there is nothing.
    """

    view: int = 0
    image: int = 0
    found: dict[str, Stored | None] = field(default_factory=dict)


class CachedOutputs:
    """Looks up the outputs of all cached teachers for augmented samples.

    Args:
        folders: by teacher.
        config: the block ``data:``.
    """

    def __init__(self, folders: Mapping[str, CacheFolder], config: DataConfig) -> None:
        self.folders = dict(folders)
        kinds = {folder.kind for folder in self.folders.values()}
        self._exact = "views" in kinds
        self._places = PlaceMap(config) if "images" in kinds else None

    def __call__(
        self, stored: np.ndarray, seen: np.ndarray, index: int, view: int, seed: int
    ) -> CachedItem:
        """What is stored about one sample.

        Args:
            stored: (H, W, 3) uint8 image of the dataset.
            seen: the same, augmented.
            index: of the image in the dataset.
            view: its number.
            seed: of its augmentation.
        """
        item = CachedItem(view, fingerprint(seen) if self._exact else 0)
        places = whole = None
        if self._places is not None:
            places, whole = self._places(stored, seed), fingerprint(stored)
        for name, folder in self.folders.items():
            if places is None or whole is None or folder.kind == "views":
                item.found[name] = folder.outputs.read(index, view, item.image)
                continue
            found = folder.outputs.read(index, 0, whole)
            size = stored.shape[0], stored.shape[1]
            item.found[name] = found and sampled(found, places, size, folder.stride)
        return item


def batched(items: Sequence[CachedItem]) -> dict[str, Tensor]:
    """The parts of ``Batch.extra`` of the samples of a batch.

    A teacher's ``found`` (B,) bool is there only if some outputs are not: reading it on a GPU would
    make the host wait.
    """
    extra = {
        VIEW: torch.tensor([item.view for item in items], dtype=torch.int64),
        IMAGE: torch.tensor([item.image for item in items], dtype=torch.int64),
    }
    for name in items[0].found:
        every = [item.found[name] for item in items]
        there = [one for one in every if one is not None]
        if len(there) < len(every):
            extra[extra_key(name, FOUND)] = torch.tensor([one is not None for one in every])
        if not there:
            continue
        nothing = np.zeros_like(there[0].logits)
        logits = [nothing if one is None else one.logits for one in every]
        extra[extra_key(name, LOGITS)] = torch.from_numpy(np.stack(logits))
        first = there[0].exist
        if first is not None:
            own = [None if one is None else one.exist for one in every]
            exist = [np.zeros_like(first) if one is None else one for one in own]
            extra[extra_key(name, EXIST)] = torch.from_numpy(np.stack(exist))
        if any(one.known is not None for one in there):
            whole = np.ones(nothing.shape[1:], bool)
            masks = [whole if one is None or one.known is None else one.known for one in every]
            extra[extra_key(name, KNOWN)] = torch.from_numpy(np.stack(masks))
    return extra


def sampled(
    stored: Stored, places: tuple[np.ndarray, np.ndarray], size: tuple[int, int], stride: int
) -> Stored:
    """The outputs for a crop, from those for the whole image: linear between its positions.

    Args:
        stored: of the whole image.
        places: rows and columns (H, W) of the crop's pixels in the image; NaN on padding.
        size: (height, width) of the image.
        stride: pixels of the crop per position.

    Returns:
        Outputs of size (ceil(H / stride), ceil(W / stride)).
    """
    inside = np.isfinite(places[0])
    height, width = inside.shape
    # The pixels around the centre of each cell: two by two, or one if the stride is odd.
    rows, columns = (
        [np.minimum(np.arange(0, side, stride) + offset, side - 1) for offset in offsets]
        for side, offsets in ((height, _middle(stride)), (width, _middle(stride)))
    )
    count = np.zeros((len(rows[0]), len(columns[0])))
    sums = [count.copy(), count.copy()]
    for row in rows:
        for column in columns:
            there = inside[np.ix_(row, column)]
            count += there
            for total, place in zip(sums, places, strict=True):
                total += np.where(there, place[np.ix_(row, column)], 0)
    known = count > 0
    corners = []
    for total, side, extent, most in zip(
        sums, size, stored.extent, stored.logits.shape[1:], strict=True
    ):
        place = total / np.maximum(count, 1) * (extent / side) - 0.5
        place = place.clip(0, most - 1)
        low = np.floor(place + _NEAR).astype(np.intp)
        share = (place - low).astype(np.float32).clip(0)
        # A neighbour without a share has no influence, even if it is NaN.
        corners.append((low, np.minimum(low + (share > _NEAR), most - 1), share))
    (top, bottom, down), (left, right, along) = corners
    logits = stored.logits.astype(np.float32)
    above = logits[:, top, left] * (1 - along) + logits[:, top, right] * along
    below = logits[:, bottom, left] * (1 - along) + logits[:, bottom, right] * along
    mixed = (above * (1 - down) + below * down).astype(np.float16)
    return Stored(mixed, stored.exist, known=None if known.all() else known)


def _middle(stride: int) -> set[int]:
    return {(stride - 1) // 2, stride // 2}
