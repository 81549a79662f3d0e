"""Scores a network on a dataset: every image once, at the resolution of its own label."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from segkd.data.base import Dataset
from segkd.errors import ConfigError, DataError
from segkd.evaluation.lane_result import LaneResult
from segkd.inference.scores import View, label_map
from segkd.inference.views import views
from segkd.metrics import boundary, confusion
from segkd.metrics.boundary import BoundaryCounts
from segkd.metrics.confusion import ConfusionMatrix
from segkd.ops.mode import eval_mode
from segkd.structures import Batch

if TYPE_CHECKING:
    from segkd.config.schema import EvalConfig
    from segkd.runtime import Runtime


@dataclass(frozen=True)
class Result:
    """What an evaluation found.

    Attributes:
        matrix: (K, K) int64 pixel counts, rows are labels.
        classes: K names.
        images: number of images that were scored, over all processes.
        skipped: number of those that were not: unreadable, or without one labelled pixel.
        boundary: (2, K) int64 as ``metrics.boundary`` counts them; None if not asked for.
    """

    matrix: Tensor
    classes: tuple[str, ...]
    images: int
    skipped: int = 0
    boundary: Tensor | None = None
    score_name: ClassVar[str] = "mIoU"
    columns: ClassVar[tuple[str, ...]] = ("val/miou", "val/pixel_accuracy")

    @property
    def score(self) -> float:
        """What the best checkpoint is chosen by: the mean IoU."""
        return self.miou

    @property
    def chance(self) -> float:
        """What a network scores that guesses among K classes: of 2/K − 1/K² of all pixels, that
        are a class or called so, 1/K² are both."""
        return 1 / (2 * len(self.classes) - 1)

    def scalars(self) -> dict[str, float]:
        """Numbers for the log, by column."""
        return dict(zip(self.columns, (self.miou, self.pixel_accuracy), strict=True))

    @property
    def miou(self) -> float:
        """Mean IoU in [0, 1] over the classes that are not absent."""
        return confusion.mean_iou(self.matrix)

    @property
    def iou(self) -> dict[str, float]:
        """IoU by class name; NaN for absent classes."""
        return dict(zip(self.classes, confusion.iou(self.matrix).tolist(), strict=True))

    @property
    def boundary_iou(self) -> dict[str, float]:
        """Boundary IoU by class name; empty if it was not asked for."""
        if self.boundary is None:
            return {}
        scores = boundary.boundary_iou(self.boundary).tolist()
        return dict(zip(self.classes, scores, strict=True))

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

    @property
    def unlabelled(self) -> list[str]:
        """Classes that are predicted somewhere, but no counted pixel's label: their IoU is 0."""
        rows, columns = self.matrix.sum(1).tolist(), self.matrix.sum(0).tolist()
        names = zip(self.classes, rows, columns, strict=True)
        return [name for name, labelled, found in names if found and not labelled]

    @property
    def labelled_miou(self) -> float:
        """Mean IoU over the classes that are some pixel's label, as for a few images alone."""
        scores = confusion.iou(self.matrix)
        return float(scores[self.matrix.sum(1) > 0].mean())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; NaN becomes None."""
        return {
            "score": _plain(self.score),
            "score_name": self.score_name,
            "miou": _plain(self.miou),
            "labelled_miou": _plain(self.labelled_miou),
            "pixel_accuracy": _plain(self.pixel_accuracy),
            "mean_accuracy": _plain(self.mean_accuracy),
            "iou": {name: _plain(value) for name, value in self.iou.items()},
            "absent": self.absent,
            "images": self.images,
            "skipped": self.skipped,
            "classes": list(self.classes),
            "matrix": self.matrix.tolist(),
            **self._boundary_dict(),
        }

    def _boundary_dict(self) -> dict[str, Any]:
        if self.boundary is None:
            return {}
        iou = {name: _plain(value) for name, value in self.boundary_iou.items()}
        mean = _plain(boundary.mean_boundary_iou(self.boundary))
        counts = self.boundary.tolist()
        return {"boundary": {"miou": mean, "iou": iou, "counts": counts}}


Outcome = Result | LaneResult


@torch.no_grad()
def evaluate(
    network: nn.Module,
    dataset: Dataset,
    config: "EvalConfig",
    runtime: "Runtime",
    *,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
    predictions: Path | None = None,
) -> Outcome:
    """Evaluates as ``config`` says; under several processes each one takes its share.

    What is measured goes with the dataset's task: IoU of classes, or the official lane score.

    The network is put into eval mode, and every module's mode is restored at the end.

    Args:
        network: answers ``Outputs`` to uint8 images; already on ``runtime.device``.
        dataset: must have labels. They keep their own resolution, images may have been resized.
        workers: loader processes.
        progress: called as ``progress(done, total)`` with this process's images.
        predictions: of lanes: a folder for what is found, in the official files of the set.

    Raises:
        DataError: if an image has no label, or the dataset has no image.
        ConfigError: if the network's number of classes is not the dataset's.
    """
    if dataset.task == "lanes":
        from segkd.evaluation.lane_evaluator import evaluate_lanes
        from segkd.inference.lane_predictions import LanePredictions

        written = LanePredictions(predictions, dataset) if predictions else None
        result = evaluate_lanes(
            network, dataset, config, runtime, workers=workers, progress=progress, on_found=written
        )
        if written is not None:
            written.finish(runtime)
        return result
    if predictions is not None:
        raise ConfigError(
            f"predictions: '{dataset.name}' is no lane set. For label maps use `segkd predict`"
        )
    return _evaluate_classes(network, dataset, config, runtime, workers, progress)


def result_class(dataset: Dataset) -> type[Outcome]:
    """The class of the results that ``evaluate`` gives for a dataset."""
    if dataset.task != "lanes":
        return Result
    from segkd.evaluation.lane_tallies import TALLIES

    return TALLIES[dataset.metric].outcome


def check_options(dataset: Dataset, config: "EvalConfig") -> None:
    """Refuses what the dataset's task has no use for, before anything is computed."""
    if dataset.task == "lanes":
        from segkd.evaluation import lane_evaluator as lanes

        lanes.check_options(config)


def _evaluate_classes(
    network: nn.Module,
    dataset: Dataset,
    config: "EvalConfig",
    runtime: "Runtime",
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> Result:
    from segkd.data.loader import eval_loader

    loader = eval_loader(
        dataset,
        batch_size=config.batch_size,
        workers=workers,
        rank=runtime.rank,
        world=runtime.world,
        limit=config.limit,
    )
    classes = tuple(dataset.classes)
    matrix = ConfusionMatrix(len(classes), dataset.ignore_index, runtime.device)
    edges = BoundaryCounts(len(classes), dataset.ignore_index, runtime.device)
    sums = [matrix, edges] if config.boundary else [matrix]
    done = 0
    with eval_mode(network), runtime.autocast():
        for batch, names in loader:
            _check_labelled(batch, names, dataset)
            batch = batch.to(runtime.device)
            _update(sums, views(network, batch.images, config), batch.labels)
            done += len(names)
            if progress is not None:
                progress(done, loader.images)
    matrix.skip(sum(loader.skipped.values()))
    for total in sums:
        total.reduce(runtime)
    counts = edges.counts.cpu() if config.boundary else None
    return Result(matrix.matrix.cpu(), classes, matrix.images, matrix.skipped, counts)


def _check_labelled(batch: Batch, names: list[str], dataset: Dataset) -> None:
    if batch.labels is None:
        raise DataError(
            f"image '{names[0]}' of '{dataset.name}' has no label, so it cannot be scored: "
            "use a labelled split (data.val_split=…)"
        )


def _update(
    sums: list[ConfusionMatrix | BoundaryCounts], passes: list[View], labels: Tensor
) -> None:
    found, expected = passes[0].scores.shape[1], sums[0].num_classes
    if found != expected:
        raise ConfigError(
            f"the network has {found} classes, but the dataset has {expected}: "
            "evaluate on the dataset it was trained on"
        )
    for prediction, label in zip(label_map(passes, tuple(labels.shape[1:])), labels, strict=True):
        for total in sums:
            total.update(prediction, label)


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
