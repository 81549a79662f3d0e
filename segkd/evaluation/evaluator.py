"""Evaluation of a network on a dataset: each image once, at the resolution of its label."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from segkd.data.base import Dataset
from segkd.data.lane_base import is_lane_set
from segkd.errors import ConfigError
from segkd.evaluation.batches import Progress, open_loader, placed_batches
from segkd.evaluation.lane_result import LaneResult
from segkd.evaluation.table import nan_to_none
from segkd.inference.scores import View, label_map
from segkd.inference.views import views
from segkd.metrics import boundary, confusion
from segkd.metrics.boundary import BoundaryCounts
from segkd.metrics.confusion import ConfusionMatrix
from segkd.models.query_error import naming_images
from segkd.ops.mode import eval_mode

if TYPE_CHECKING:
    from segkd.config.schema import EvalConfig
    from segkd.runtime import Runtime


@dataclass(frozen=True)
class Result:
    """The result of an evaluation of label maps.

    Attributes:
        matrix: (K, K) int64 pixel counts, rows are labels.
        classes: K names.
        images: number of scored images, over all processes.
        skipped: number of other images: unreadable, or without labelled pixels.
        boundary: (2, K) int64 counts of ``metrics.boundary``; None without ``eval.boundary``.
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
        """The mean IoU, by which the best checkpoint is chosen."""
        return self.miou

    @property
    def chance(self) -> float:
        """Expected score of uniform guesses among K classes: of the 2/K − 1/K² of all pixels that
        are labelled or predicted as a class, 1/K² are both."""
        return 1 / (2 * len(self.classes) - 1)

    def scalars(self) -> dict[str, float]:
        """Numbers for the log, by column."""
        return dict(zip(self.columns, (self.miou, self.pixel_accuracy), strict=True))

    @property
    def miou(self) -> float:
        """Mean IoU in [0, 1] over the classes that occur."""
        return confusion.mean_iou(self.matrix)

    @property
    def iou(self) -> dict[str, float]:
        """IoU by class name; NaN for absent classes."""
        return dict(zip(self.classes, confusion.iou(self.matrix).tolist(), strict=True))

    @property
    def boundary_iou(self) -> dict[str, float]:
        """Boundary IoU by class name; empty without ``eval.boundary``."""
        if self.boundary is None:
            return {}
        scores = boundary.boundary_iou(self.boundary).tolist()
        return dict(zip(self.classes, scores, strict=True))

    @property
    def pixel_accuracy(self) -> float:
        """Share of correct pixels, in [0, 1]."""
        return confusion.pixel_accuracy(self.matrix)

    @property
    def mean_accuracy(self) -> float:
        """Mean over labelled classes of the share of correct pixels, in [0, 1]."""
        return confusion.mean_accuracy(self.matrix)

    @property
    def absent(self) -> list[str]:
        """Classes that are neither labelled nor predicted anywhere."""
        return [name for name, value in self.iou.items() if math.isnan(value)]

    @property
    def unlabelled(self) -> list[str]:
        """Classes that are predicted but nowhere labelled: their IoU is 0."""
        rows, columns = self.matrix.sum(1).tolist(), self.matrix.sum(0).tolist()
        names = zip(self.classes, rows, columns, strict=True)
        return [name for name, labelled, found in names if found and not labelled]

    @property
    def labelled_miou(self) -> float:
        """Mean IoU over the labelled classes, meaningful also for a few images."""
        scores = confusion.iou(self.matrix)
        return float(scores[self.matrix.sum(1) > 0].mean())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; NaN becomes None."""
        return {
            "score": nan_to_none(self.score),
            "score_name": self.score_name,
            "miou": nan_to_none(self.miou),
            "labelled_miou": nan_to_none(self.labelled_miou),
            "pixel_accuracy": nan_to_none(self.pixel_accuracy),
            "mean_accuracy": nan_to_none(self.mean_accuracy),
            "iou": {name: nan_to_none(value) for name, value in self.iou.items()},
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
        iou = {name: nan_to_none(value) for name, value in self.boundary_iou.items()}
        mean = nan_to_none(boundary.mean_boundary_iou(self.boundary))
        counts = self.boundary.tolist()
        return {"boundary": {"miou": mean, "iou": iou, "counts": counts}}


Outcome = Result | LaneResult


@torch.no_grad()
def evaluate_network(
    network: nn.Module,
    dataset: Dataset,
    config: "EvalConfig",
    runtime: "Runtime",
    *,
    workers: int = 0,
    progress: Progress | None = None,
    predictions: Path | None = None,
) -> Outcome:
    """Evaluates a network; with several processes each one takes its share of the images.

    The dataset's task decides what is measured: IoU of classes, or the official lane score. The
    network is evaluated in eval mode, and the mode of every module is restored at the end.

    Args:
        network: returns ``Outputs`` for uint8 images (B, 3, H, W); already on ``runtime.device``.
        dataset: must have labels. They keep their resolution even if images are resized.
        config: batch size, limit, scales, flip, sliding windows, options of lanes.
        runtime: device, precision and processes.
        workers: loader processes.
        progress: called with (done, total) images of this process.
        predictions: of lane sets only: a folder for prediction files in the set's official format.

    Raises:
        DataError: an image has no label, or the dataset has no image.
        ConfigError: network and dataset differ in the number of classes; or ``predictions`` is the
            folder of the set itself.
    """
    if is_lane_set(dataset):
        from segkd.evaluation.lane_evaluator import evaluate_lanes
        from segkd.inference.lane_predictions import LanePredictions, require_apart

        if predictions:
            require_apart(predictions, dataset)
        written = LanePredictions(predictions, dataset) if predictions else None
        result = evaluate_lanes(
            network, dataset, config, runtime, workers=workers, progress=progress, on_found=written
        )
        if written is not None:
            written.finish(runtime)
        return result
    if predictions is not None:
        raise ConfigError(
            f"predictions: '{dataset.name}' is not a lane set. For label maps use `segkd predict`"
        )
    return evaluate_segmentation(
        network, dataset, config, runtime, workers=workers, progress=progress
    )


def result_class(dataset: Dataset) -> type[Outcome]:
    """The class of the results of ``evaluate_network`` on a dataset."""
    if not is_lane_set(dataset):
        return Result
    from segkd.evaluation.lane_tallies import TALLIES

    return TALLIES[dataset.metric].outcome


def result_columns(dataset: Dataset, config: "EvalConfig") -> tuple[str, ...]:
    """Keys of ``scalars`` of the results of ``evaluate_network`` on a dataset."""
    found = result_class(dataset)
    if not is_lane_set(dataset) or dataset.metric != "culane":
        return found.columns
    from segkd.evaluation.lane_result import further_columns

    return (*found.columns, *further_columns(config.lanes.iou))


def check_options(dataset: Dataset, config: "EvalConfig") -> None:
    """Checks that the options apply to the dataset's task.

    Raises:
        ConfigError: an option of label maps for a lane set.
    """
    if dataset.task == "lanes":
        from segkd.evaluation import lane_evaluator as lanes

        lanes.check_options(config)


@torch.no_grad()
def evaluate_segmentation(
    network: nn.Module,
    dataset: Dataset,
    config: "EvalConfig",
    runtime: "Runtime",
    *,
    workers: int = 0,
    progress: Progress | None = None,
) -> Result:
    """``evaluate_network`` for label maps; see there for arguments and errors."""
    loader = open_loader(dataset, config, runtime, workers)
    classes = tuple(dataset.classes)
    matrix = ConfusionMatrix(len(classes), dataset.ignore_index, runtime.device)
    edges = BoundaryCounts(len(classes), dataset.ignore_index, runtime.device)
    sums: list[ConfusionMatrix | BoundaryCounts] = [matrix]
    if config.boundary:
        sums.append(edges)
    with eval_mode(network), runtime.autocast():
        for batch in placed_batches(loader, dataset, progress, runtime.device):
            with naming_images(dataset, batch.index):
                found = views(network, batch.images, config)
            _update(sums, found, batch.labels)
    matrix.skip(sum(loader.skipped.values()))
    for total in sums:
        total.reduce(runtime)
    counts = edges.counts.cpu() if config.boundary else None
    return Result(matrix.matrix.cpu(), classes, matrix.images, matrix.skipped, counts)


def _update(
    sums: list[ConfusionMatrix | BoundaryCounts], passes: list[View], labels: Tensor
) -> None:
    found, expected = passes[0].scores.shape[1], sums[0].num_classes
    if found != expected:
        raise ConfigError(
            f"the network has {found} classes, but the dataset has {expected}: "
            "evaluate on the dataset it was trained on"
        )
    height, width = labels.shape[1:]
    for prediction, label in zip(label_map(passes, (height, width)), labels, strict=True):
        for total in sums:
            total.update(prediction, label)
