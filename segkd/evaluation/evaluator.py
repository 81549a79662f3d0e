"""Scores a network on a dataset: every image once, at the resolution of its own label."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from segkd.data.base import Dataset
from segkd.errors import ConfigError, DataError
from segkd.evaluation.mode import eval_mode
from segkd.evaluation.predict import views
from segkd.evaluation.scores import View, label_map
from segkd.metrics import confusion
from segkd.metrics.confusion import ConfusionMatrix
from segkd.structures import Batch

if TYPE_CHECKING:
    from segkd.config.schema import EvalConfig
    from segkd.engine.runtime import Runtime


@dataclass(frozen=True)
class Result:
    """What an evaluation found.

    Attributes:
        matrix: (K, K) int64 pixel counts, rows are labels.
        classes: K names.
        images: number of images that were scored, over all processes.
        skipped: number of those that were not: unreadable, or without one labelled pixel.
    """

    matrix: Tensor
    classes: tuple[str, ...]
    images: int
    skipped: int = 0

    @property
    def miou(self) -> float:
        """Mean IoU in [0, 1] over the classes that are not absent."""
        return confusion.mean_iou(self.matrix)

    @property
    def iou(self) -> dict[str, float]:
        """IoU by class name; NaN for absent classes."""
        return dict(zip(self.classes, confusion.iou(self.matrix).tolist(), strict=True))

    @property
    def pixel_accuracy(self) -> float:
        return confusion.pixel_accuracy(self.matrix)

    @property
    def mean_accuracy(self) -> float:
        return confusion.mean_accuracy(self.matrix)

    @property
    def absent(self) -> list[str]:
        """Classes that are neither label nor prediction of any counted pixel."""
        return [name for name, value in self.iou.items() if math.isnan(value)]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; NaN becomes None."""
        return {
            "miou": _plain(self.miou),
            "pixel_accuracy": _plain(self.pixel_accuracy),
            "mean_accuracy": _plain(self.mean_accuracy),
            "iou": {name: _plain(value) for name, value in self.iou.items()},
            "absent": self.absent,
            "images": self.images,
            "skipped": self.skipped,
            "classes": list(self.classes),
            "matrix": self.matrix.tolist(),
        }


@torch.no_grad()
def evaluate(
    network: nn.Module,
    dataset: Dataset,
    config: "EvalConfig",
    runtime: "Runtime",
    *,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Evaluates as ``config`` says; under several processes each one takes its share.

    The network is put into eval mode, and every module's mode is restored at the end.

    Args:
        network: answers ``Outputs`` to uint8 images; already on ``runtime.device``.
        dataset: must have labels. They keep their own resolution, images may have been resized.
        workers: loader processes.
        progress: called as ``progress(done, total)`` with this process's images.

    Raises:
        DataError: if an image has no label, or the dataset has no image.
        ConfigError: if the network's number of classes is not the dataset's.
    """
    from segkd.data.loader import eval_loader

    loader = eval_loader(
        dataset,
        batch_size=config.batch_size,
        workers=workers,
        rank=runtime.rank,
        world=runtime.world,
        limit=config.limit,
    )
    total = min(len(dataset), config.limit or len(dataset))
    share = total * (runtime.rank + 1) // runtime.world - total * runtime.rank // runtime.world
    classes = tuple(dataset.classes)
    matrix = ConfusionMatrix(len(classes), dataset.ignore_index, runtime.device)
    done = 0
    with eval_mode(network), runtime.autocast():
        for batch, names in loader:
            _check_labelled(batch, names, dataset)
            batch = batch.to(runtime.device)
            _update(matrix, views(network, batch.images, config), batch.labels)
            done += len(names)
            if progress is not None:
                progress(done, share)
    matrix.skip(sum(loader.skipped.values()))
    matrix.reduce(runtime)
    return Result(matrix.matrix.cpu(), classes, matrix.images, matrix.skipped)


def _check_labelled(batch: Batch, names: list[str], dataset: Dataset) -> None:
    if batch.labels is None:
        raise DataError(
            f"image '{names[0]}' of '{dataset.name}' has no label, so it cannot be scored: "
            "use a labelled split (data.val_split=…)"
        )


def _update(matrix: ConfusionMatrix, passes: list[View], labels: Tensor) -> None:
    found = passes[0].scores.shape[1]
    if found != matrix.num_classes:
        raise ConfigError(
            f"the network has {found} classes, but the dataset has {matrix.num_classes}: "
            "evaluate on the dataset it was trained on"
        )
    for prediction, label in zip(label_map(passes, tuple(labels.shape[1:])), labels, strict=True):
        matrix.update(prediction, label)


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
