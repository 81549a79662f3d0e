"""Results of an evaluation of lanes, with the interface of ``evaluator.Result``."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from segkd.evaluation.table import nan_to_none
from segkd.metrics.culane import Counts
from segkd.metrics.culane_thresholds import Thresholds


@dataclass(frozen=True)
class LaneResult:
    """Base of the results of the three official metrics.

    Attributes:
        images: number of scored images, over all processes.
        skipped: number of unreadable images.
        score_name: name of the score.
        columns: keys of ``scalars``.
        chance: a score below 1.5 times this one counts as chance.
    """

    images: int
    skipped: int = 0
    score_name: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    chance: ClassVar[float] = 0.02

    @property
    def score(self) -> float:
        """In [0, 1], higher is better; by it the best checkpoint is chosen."""
        raise NotImplementedError

    def scalars(self) -> dict[str, float]:
        """Numbers for the log, by column."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; undefined values are None."""
        return {
            "score": nan_to_none(self.score),
            "score_name": self.score_name,
            "images": self.images,
            "skipped": self.skipped,
        }


@dataclass(frozen=True)
class CulaneResult(LaneResult):
    """F1 of CULane.

    Attributes:
        total: over all images.
        categories: number of images and counts by category.
        thresholds: counts at several IoU thresholds; those above are at the first one.
    """

    total: Counts = field(default_factory=Counts)
    categories: dict[str, tuple[int, Counts]] = field(default_factory=dict)
    thresholds: Thresholds = field(default_factory=Thresholds)
    score_name: ClassVar[str] = "F1"
    columns: ClassVar[tuple[str, ...]] = ("val/f1", "val/precision", "val/recall")

    @property
    def score(self) -> float:
        """F1 at the first threshold: 2 TP / (2 TP + FP + FN), 0 without a hit.

        NaN without annotated and predicted lanes.
        """
        lanes = 2 * self.total.tp + self.total.fp + self.total.fn
        return 2 * self.total.tp / lanes if lanes else math.nan

    def scalars(self) -> dict[str, float]:
        """F1, precision and recall by column; with several thresholds F1 at each, and mF1.

        Undefined ratios are 0.
        """
        values = self.score, max(self.total.precision, 0.0), max(self.total.recall, 0.0)
        more = self.thresholds.ratios()
        columns = further_columns(self.thresholds.shown) if more else ()
        ratios = (ratio if ratio > 0 else 0.0 for ratio in more)
        return dict(zip((*self.columns, *columns), (*values, *ratios), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with all counts; undefined values are None."""
        categories = {
            name: {"images": images, **counts.to_dict(), **self.thresholds.to_dict(name)}
            for name, (images, counts) in self.categories.items()
        }
        total = self.total.to_dict() | self.thresholds.to_dict()
        return super().to_dict() | total | {"categories": categories}


def further_columns(thresholds: Sequence[float]) -> tuple[str, ...]:
    """Columns of the log for several thresholds: ``val/f1@75`` and so on, and ``val/mf1``."""
    if len(thresholds) < 2:
        return ()
    return (*(f"val/f1@{100 * threshold:g}" for threshold in thresholds[1:]), "val/mf1")


@dataclass(frozen=True)
class TusimpleResult(LaneResult):
    """Means over images, as in the benchmark; ``fp`` may be negative."""

    accuracy: float = 0.0
    fp: float = 0.0
    fn: float = 0.0
    score_name: ClassVar[str] = "accuracy"
    columns: ClassVar[tuple[str, ...]] = ("val/accuracy", "val/fp", "val/fn")

    @property
    def score(self) -> float:
        """Accuracy."""
        return self.accuracy

    def scalars(self) -> dict[str, float]:
        """Accuracy, false positives and false negatives by column."""
        return dict(zip(self.columns, (self.accuracy, self.fp, self.fn), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return super().to_dict() | {"accuracy": self.accuracy, "fp": self.fp, "fn": self.fn}


@dataclass(frozen=True)
class Bdd100kResult(LaneResult):
    """Means over images of the accuracy (a recall) and IoU of lane pixels."""

    accuracy: float = 0.0
    iou: float = 0.0
    score_name: ClassVar[str] = "IoU"
    columns: ClassVar[tuple[str, ...]] = ("val/iou", "val/accuracy")

    @property
    def score(self) -> float:
        """IoU."""
        return self.iou

    def scalars(self) -> dict[str, float]:
        """IoU and accuracy by column."""
        return dict(zip(self.columns, (self.iou, self.accuracy), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return super().to_dict() | {"accuracy": self.accuracy, "iou": self.iou}
