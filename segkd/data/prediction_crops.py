"""Stored predictions of whole images, cut and moved as the augmentation moves their images.

The augmentation is repeated with the same seed on a map of places, an integer mask in which each
pixel of the stored image has its own number. So it is known where each pixel of the crop came from,
whatever crops, scales, rotations, flips and transforms of albumentations have done, and no other
place has to know about predictions. A cell of ``stride`` x ``stride`` pixels has the mean over its
pixels, each of which takes the nearest stored position: label maps become shares of classes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segkd.data.base import DataConfig, Dataset, Sample
from segkd.data.predictions import (
    Prediction,
    PredictionFolder,
    check_size,
    read_prediction,
)
from segkd.data.transforms import TrainTransform

_EXACT = 2**24  # numbers that are whole in float32, in which masks are rotated
_NOWHERE = -1  # place of padding
PARTS = ("listed", "tail", "known")  # of a batch's `extra`, by `extra_key`


@dataclass(frozen=True)
class Store:
    """The stored predictions of one teacher.

    Attributes:
        folder: of the files.
        num_classes: K of the teacher.
        stride: side of a cell in pixels of the crop.
        skip: leave images without a prediction out, instead of raising.
    """

    folder: PredictionFolder
    num_classes: int
    stride: int
    skip: bool = False


@dataclass(frozen=True)
class Cells:
    """What a teacher said about the cells of a crop.

    Attributes:
        listed: (K, h, w) float32 probability of the classes that the prediction names.
        tail: (K, h, w) float32: the rest, spread evenly over the classes that are not named.
        known: (h, w) bool, False where less than half of the pixels have a prediction.
    """

    listed: np.ndarray
    tail: np.ndarray
    known: np.ndarray


def extra_key(teacher: str, part: str) -> str:
    """The key of ``Batch.extra`` for a part of the cells of a teacher."""
    return f"teacher/{teacher}/{part}"


class PlaceMap:
    """Where the pixels of augmented images come from.

    Args:
        config: the block ``data:``.
    """

    def __init__(self, config: DataConfig) -> None:
        self._transform = TrainTransform(config, _NOWHERE)

    def __call__(self, image: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the pixels of the augmented image come from.

        Args:
            image: (H, W, 3) uint8, as stored.
            seed: of the augmentation.

        Returns:
            Rows and columns (h, w) float64 in the stored image, pixel centres at halves; NaN on
            padding.
        """
        height, width = image.shape[:2]
        # Very large images are numbered in blocks, to stay within what a float can count.
        block = math.isqrt(-(-height * width // _EXACT) - 1) + 1
        across = -(-width // block)
        numbers = (np.arange(height, dtype=np.int32) // block * across)[:, None]
        numbers = numbers + np.arange(width, dtype=np.int32)[None] // block
        moved = self._transform(image, numbers, seed)[1]
        assert moved is not None  # given above
        rows, columns = (
            np.where(moved == _NOWHERE, np.nan, (numbers + 0.5) * block)
            for numbers in np.divmod(moved, across)
        )
        return rows, columns


class StoredCrops:
    """The cells of each teacher for augmented samples.

    Args:
        stores: by teacher.
        config: the block ``data:``.
    """

    def __init__(self, stores: Mapping[str, Store], config: DataConfig) -> None:
        self.stores = dict(stores)
        self._places = PlaceMap(config) if stores else None

    def __call__(
        self, dataset: Dataset, index: int, sample: Sample, seed: int
    ) -> dict[str, np.ndarray]:
        """The parts of the cells by ``extra_key``.

        Args:
            dataset: of the sample.
            index: of the sample.
            sample: as stored.
            seed: of its augmentation.

        Raises:
            DataError: a prediction is missing, or does not fit the image.
        """
        if self._places is None:
            return {}
        places = self.places(sample.image, seed)
        found: dict[str, np.ndarray] = {}
        for name, store in self.stores.items():
            cells = self._cells(store, image_path(dataset, index, sample), sample.image, places)
            found |= {extra_key(name, part): getattr(cells, part) for part in PARTS}
        return found

    def places(self, image: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns (h, w) that pixels come from, see ``PlaceMap``."""
        assert self._places is not None  # without stores there are no places
        return self._places(image, seed)

    def _cells(
        self,
        store: Store,
        image: Path,
        stored: np.ndarray,
        places: tuple[np.ndarray, np.ndarray],
    ) -> Cells:
        path = store.folder.find(image)
        if path is None:
            if not store.skip:
                raise store.folder.missing(image)
            sides = [-(-side // store.stride) for side in places[0].shape]
            nothing = np.zeros((store.num_classes, *sides), np.float32)
            return Cells(nothing, nothing, np.zeros(sides, bool))
        prediction = read_prediction(path, store.num_classes)
        check_size(path, prediction, stored)
        return cells(prediction, places, stored.shape[:2], store.stride, store.num_classes)


def image_path(dataset: Dataset, index: int, sample: Sample | None = None) -> Path:
    """The file of an image; its name as a path for sets without files."""
    files = dataset.files(index)
    if files is not None:
        return files[0]
    return Path((sample or dataset.read(index)).name)


def cells(
    prediction: Prediction,
    places: tuple[np.ndarray, np.ndarray],
    image_size: tuple[int, ...],
    stride: int,
    num_classes: int,
) -> Cells:
    """The mean prediction in each cell of a crop.

    Args:
        prediction: of the whole stored image.
        places: rows and columns (H, W) of the crop's pixels in the stored image; NaN on padding.
        image_size: (height, width) of the stored image.
        stride: side of a cell.
        num_classes: K.

    Returns:
        Cells of size (ceil(H / stride), ceil(W / stride)).
    """
    rows, columns = places
    height, width = rows.shape
    h, w = -(-height // stride), -(-width // stride)
    inside = ~np.isnan(rows)
    cell = (np.arange(height) // stride * w)[:, None] + np.arange(width)[None] // stride
    own_h, own_w = prediction.size
    # Many pixels of a cell take the same stored position: these are counted instead of repeated.
    row = (rows[inside] * (own_h / image_size[0])).astype(np.int64).clip(0, own_h - 1)
    column = (columns[inside] * (own_w / image_size[1])).astype(np.int64).clip(0, own_w - 1)
    pairs, count = np.unique(
        cell[inside] * (own_h * own_w) + row * own_w + column, return_counts=True
    )
    cell, source = np.divmod(pairs, own_h * own_w)
    values = prediction.values.reshape(len(prediction.values), -1)[:, source]
    total = values.sum(0)
    known = np.where(total > 0, count, 0)
    listed = np.zeros((num_classes, h * w))
    rest = known * np.maximum(1 - total, 0) if prediction.ids is not None else np.zeros(len(pairs))
    tail = np.zeros_like(listed)
    ids = None if prediction.ids is None else prediction.ids.reshape(len(values), -1)[:, source]
    for position, value in enumerate(values):
        weights = known * value
        if ids is None:
            listed[position] = np.bincount(cell, weights, h * w)
        else:
            where = ids[position] * (h * w) + cell
            listed += np.bincount(where, weights, num_classes * h * w).reshape(listed.shape)
    if ids is not None and rest.any():
        share = rest / max(num_classes - len(ids), 1)
        tail += np.bincount(cell, share, h * w)
        for named in ids:
            where = named * (h * w) + cell
            tail -= np.bincount(where, share, num_classes * h * w).reshape(tail.shape)
    pixels = np.bincount(cell, known, h * w)
    scale = 1 / np.maximum(pixels, 1)
    enough = 2 * pixels >= np.bincount(cell, count, h * w)
    parts = ((part * scale).clip(0).astype(np.float32) for part in (listed, tail))
    listed, tail = (part.reshape(num_classes, h, w) for part in parts)
    return Cells(listed, tail, (enough & (pixels > 0)).reshape(h, w))
