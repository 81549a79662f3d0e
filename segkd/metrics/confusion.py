"""The confusion matrix, and the Cityscapes metrics derived from it.

Counts are int64 throughout: float32 cannot hold the pixels of one validation set. Rows are
labels, columns are predictions; pixels whose label is void are not counted.
"""

from typing import NoReturn, Protocol

import numpy as np
import torch
from torch import Tensor

from segkd.errors import DataError

_EXACT = 2**24  # pixels of one histogram, whose counts are float32


class Reducer(Protocol):
    """What metrics need of ``runtime.Runtime``."""

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, of its shape."""
        ...


def confusion(prediction: Tensor, label: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Counts pixels by label and prediction, on the device of the tensors.

    On a CPU by OpenCV's histogram of two bytes per pixel, half of the time of a bincount, where
    all ids fit into a byte; else in one bincount. Void pixels are counted in an extra row, which is
    then dropped: cheaper than masking.

    Args:
        prediction: integer class ids of any shape; arbitrary at void pixels.
        label: of the same shape; ``ignore_index`` is not counted.
        num_classes: K.
        ignore_index: the label of void pixels.

    Returns:
        (K, K) int64; rows are labels.

    Raises:
        DataError: shapes differ, or an id is neither a class nor ``ignore_index``.
    """
    if prediction.shape != label.shape:
        raise DataError(
            f"prediction {tuple(prediction.shape)} and label {tuple(label.shape)} differ in "
            "size: resize the prediction to the label's resolution first"
        )
    counts = _histogram(prediction, label, num_classes, ignore_index)
    return _bincount(prediction, label, num_classes, ignore_index) if counts is None else counts


def _histogram(
    prediction: Tensor, label: Tensor, num_classes: int, ignore_index: int
) -> Tensor | None:
    """``confusion`` by OpenCV; None for what ``_bincount`` has to do, or to refuse."""
    if label.device.type != "cpu" or num_classes > 256 or not 0 <= ignore_index < 256:
        return None
    both = [_as_bytes(label), _as_bytes(prediction)]
    if any(ids is None for ids in both):
        return None
    import cv2

    rows = max(num_classes, ignore_index + 1)
    maps = [ids.reshape(-1).numpy() for ids in both if ids is not None]
    counts = np.zeros((rows, num_classes), np.int64)
    for start in range(0, label.numel(), _EXACT):
        part = [ids[start : start + _EXACT] for ids in maps]
        ranges = [0, rows, 0, num_classes]
        found = cv2.calcHist(part, [0, 1], None, [rows, num_classes], ranges)
        counts += found.reshape(counts.shape).astype(np.int64)
    if counts.sum() != label.numel():  # ids beyond the ranges are not counted
        return None
    counts[ignore_index] = 0
    if counts[num_classes:].any():
        return None
    return torch.from_numpy(counts[:num_classes])


def _as_bytes(ids: Tensor) -> Tensor | None:
    """Ids of any shape and integer type as uint8, if they fit."""
    if ids.dtype is torch.uint8:
        return ids
    return ids.to(torch.uint8) if ids.numel() and within(ids, 256) else None


def _bincount(prediction: Tensor, label: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """``confusion`` for ids of any size on any device."""
    if not 0 <= ignore_index < 256:
        label = label.long()  # to torch, the byte 0 equals 256
        label = label.masked_fill(label == ignore_index, num_classes)
        ignore_index = num_classes
    rows = max(num_classes, ignore_index + 1)
    if not within(label, rows):
        _refuse(label[label != ignore_index], "label", num_classes)
    if not within(prediction, num_classes):
        prediction = prediction.masked_fill(label == ignore_index, 0)
        if not within(prediction, num_classes):
            _refuse(prediction, "prediction", num_classes)
    # Memory traffic dominates the cost, so the smallest integer type is used.
    short = torch.int16 if rows * num_classes <= 2**15 else torch.int32
    pairs = label.to(short, copy=True).mul_(num_classes).add_(prediction)
    counts = torch.bincount(pairs.flatten(), minlength=rows * num_classes)
    counts = counts.view(rows, num_classes)
    counts[ignore_index] = 0
    if counts[num_classes:].any():
        _refuse(label[label != ignore_index], "label", num_classes)
    return counts[:num_classes]


def within(ids: Tensor, stop: int) -> bool:
    """Whether all ids (any shape, at least one) are in 0 … stop - 1."""
    lowest, highest = torch.stack(ids.aminmax()).tolist()  # a device is asked once
    return lowest >= 0 and highest < stop


def _refuse(ids: Tensor, what: str, num_classes: int) -> NoReturn:
    wrong = ids[(ids < 0) | (ids >= num_classes)].unique().tolist()
    shown = ", ".join(map(str, wrong[:8])) + (", …" if len(wrong) > 8 else "")
    raise DataError(
        f"{what} has the ids {shown}, but the classes are 0 to {num_classes - 1}: map other ids "
        "to a class or to the dataset's ignore_index (`segkd data check` finds the files)"
    )


class ConfusionMatrix:
    """Sums confusion matrices over images and finally over processes.

    Args:
        num_classes: K.
        ignore_index: the label of void pixels.
        device: of the counts.
    """

    def __init__(
        self, num_classes: int, ignore_index: int, device: torch.device | str = "cpu"
    ) -> None:
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self._totals = torch.zeros(num_classes**2 + 2, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Adds one image: (H, W) class ids each. Raises DataError as ``confusion`` does."""
        counts = confusion(prediction, label, self.num_classes, self.ignore_index)
        self._totals[:-2] += counts.flatten()
        counted = counts.any()
        self._totals[-2] += counted
        self._totals[-1] += ~counted

    def skip(self, images: int) -> None:
        """Counts images that could not be evaluated."""
        self._totals[-1] += images

    def reduce(self, runtime: Reducer) -> None:
        """Sums the counts over all processes with a single all-reduce."""
        self._totals = runtime.all_reduce(self._totals)

    @property
    def matrix(self) -> Tensor:
        """(K, K) int64, rows are labels."""
        return self._totals[:-2].view(self.num_classes, self.num_classes)

    @property
    def images(self) -> int:
        """Number of images with at least one labelled pixel."""
        return int(self._totals[-2])

    @property
    def skipped(self) -> int:
        """Number of images without labelled pixels, and of those reported by ``skip``."""
        return int(self._totals[-1])


def iou(matrix: Tensor) -> Tensor:
    """Intersection over union of each class: (K, K) counts -> (K,) float64.

    A class that is neither labelled nor predicted anywhere has NaN. One that is predicted but
    never labelled has 0, as in the Cityscapes evaluation and in torchmetrics.
    """
    hits = matrix.diagonal().double()
    return hits / (matrix.sum(0) + matrix.sum(1) - matrix.diagonal())


def mean_iou(matrix: Tensor) -> float:
    """Mean IoU over the classes that occur, from (K, K) counts; NaN if none does."""
    return float(iou(matrix).nanmean())


def pixel_accuracy(matrix: Tensor) -> float:
    """Share of correct pixels, from (K, K) counts; NaN if no pixel was counted."""
    return float(matrix.diagonal().sum().double() / matrix.sum())


def mean_accuracy(matrix: Tensor) -> float:
    """Mean over labelled classes of the share of correct pixels, from (K, K) counts."""
    return float((matrix.diagonal().double() / matrix.sum(1)).nanmean())
