"""What an evaluation of lanes found, with the same face as the Result of a segmentation."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from segkd.metrics.culane import Counts


@dataclass(frozen=True)
class LaneResult:
    """Base of the results of the three official metrics.

    Attributes:
        images: number of images that were scored, over all processes.
        skipped: number of those that cannot be read.
        score_name: what ``score`` is.
        columns: what ``scalars`` has.
        chance: a network that has learned something is above it by half.
    """

    images: int
    skipped: int = 0
    score_name: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    chance: ClassVar[float] = 0.02

    @property
    def score(self) -> float:
        """In [0, 1], higher is better: what the best checkpoint is chosen by."""
        raise NotImplementedError

    def scalars(self) -> dict[str, float]:
        """Numbers for the log, by column."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; what is undefined is None."""
        return {
            "score": _plain(self.score),
            "score_name": self.score_name,
            "images": self.images,
            "skipped": self.skipped,
        }


@dataclass(frozen=True)
class CulaneResult(LaneResult):
    """F1 of CULane.

    Attributes:
        total: over all images.
        categories: images and counts of each category that the set has.
    """

    total: Counts = field(default_factory=Counts)
    categories: dict[str, tuple[int, Counts]] = field(default_factory=dict)
    score_name: ClassVar[str] = "F1"
    columns: ClassVar[tuple[str, ...]] = ("val/f1", "val/precision", "val/recall")

    @property
    def score(self) -> float:
        """2 TP / (2 TP + FP + FN), 0 without a hit; NaN if there are no lanes on either side."""
        lanes = 2 * self.total.tp + self.total.fp + self.total.fn
        return 2 * self.total.tp / lanes if lanes else math.nan

    def scalars(self) -> dict[str, float]:
        values = self.score, max(self.total.precision, 0.0), max(self.total.recall, 0.0)
        return dict(zip(self.columns, values, strict=True))

    def to_dict(self) -> dict[str, Any]:
        categories = {
            name: {"images": images, **counts.to_dict()}
            for name, (images, counts) in self.categories.items()
        }
        return super().to_dict() | self.total.to_dict() | {"categories": categories}


@dataclass(frozen=True)
class TusimpleResult(LaneResult):
    """Means over images, as the benchmark's; ``fp`` may be negative."""

    accuracy: float = 0.0
    fp: float = 0.0
    fn: float = 0.0
    score_name: ClassVar[str] = "accuracy"
    columns: ClassVar[tuple[str, ...]] = ("val/accuracy", "val/fp", "val/fn")

    @property
    def score(self) -> float:
        return self.accuracy

    def scalars(self) -> dict[str, float]:
        return dict(zip(self.columns, (self.accuracy, self.fp, self.fn), strict=True))

    def to_dict(self) -> dict[str, Any]:
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
        return self.iou

    def scalars(self) -> dict[str, float]:
        return dict(zip(self.columns, (self.iou, self.accuracy), strict=True))

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"accuracy": self.accuracy, "iou": self.iou}


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
