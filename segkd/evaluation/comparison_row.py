"""A row of a comparison, and what it gains over the student baseline."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from segkd.evaluation.table import nan_to_none


@dataclass(frozen=True)
class ComparisonRow:
    """One row of a comparison: a network and the cost of its training.

    Attributes:
        name: of the run or teacher.
        scores: mIoU, or the score called ``score_name``, in [0, 1], one per seed.
        parameters: number; None where unknown, as for all below.
        flops: operations for one image; a multiply-add counts as two.
        seconds_per_step: of training.
        peak_memory: of training, in bytes.
        role: the teacher, the student baseline, or neither.
        score_name: lanes have F1, accuracy or IoU.
        steps: of training, the mean over seeds.
        matched: the runs were compared at equal training time, so that their steps differ.
        seeds: one per score; empty where unknown.
    """

    name: str
    scores: Sequence[float]
    parameters: int | None = None
    flops: float | None = None
    seconds_per_step: float | None = None
    peak_memory: int | None = None
    role: Literal["", "teacher", "baseline"] = ""
    score_name: str = "mIoU"
    steps: float | None = None
    matched: bool = False
    seeds: Sequence[int] = ()

    @property
    def training_seconds(self) -> float | None:
        """Of the whole training, without evaluations; None if unknown."""
        if self.steps is None or self.seconds_per_step is None:
            return None
        return self.steps * self.seconds_per_step

    @property
    def mean(self) -> float:
        """Mean score over seeds; NaN without any."""
        return statistics.fmean(self.scores) if self.scores else math.nan

    @property
    def rank(self) -> float:
        """The mean to sort rows by; minus infinity without one, so that these are last."""
        return self.mean if math.isfinite(self.mean) else -math.inf

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds; None for fewer than two, or an undefined score."""
        return deviation(self.scores)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; NaN becomes None."""
        plain = asdict(self) | {"scores": [nan_to_none(value) for value in self.scores]}
        means = {"miou_mean": nan_to_none(self.mean), "miou_std": self.std}
        return plain | means | {"training_seconds": self.training_seconds}


def deviation(scores: Sequence[float]) -> float | None:
    """Sample standard deviation; None for fewer than two scores, or if one is undefined."""
    known = len(scores) > 1 and all(map(math.isfinite, scores))
    return statistics.stdev(scores) if known else None


@dataclass(frozen=True)
class Gain:
    """What a run gains over the student baseline, seed by seed where both have the same ones.

    A seed decides the batches, and often the first weights, of both runs, so that the differences
    vary less than the scores do.

    Attributes:
        mean: in scores, over the seeds that both have; without any the difference of the means.
            NaN if a score is undefined.
        std: sample standard deviation over these seeds; None for fewer than two.
        closed: share of the gap between baseline and teacher, see ``recovered``; None without one.
    """

    mean: float
    std: float | None
    closed: float | None


NO_GAIN = Gain(math.nan, None, None)


def gain_over(
    row: ComparisonRow, baseline: ComparisonRow, teacher: ComparisonRow | None = None
) -> Gain:
    """The gain of a run over the baseline, and the share of the distance to ``teacher``."""
    row, baseline = _at_shared_seeds(row, baseline)
    mean = row.mean - baseline.mean
    if not math.isfinite(mean):
        return NO_GAIN
    pairs = zip(row.scores, baseline.scores, strict=True) if row.seeds else ()
    std = deviation([own - other for own, other in pairs])
    return Gain(mean, std, None if teacher is None else recovered(row, baseline, teacher))


def _at_shared_seeds(*rows: ComparisonRow) -> tuple[ComparisonRow, ...]:
    """Rows with the scores of the seeds that all have; without such seeds as they are, unnamed."""
    shared = [seed for seed in rows[0].seeds if all(seed in row.seeds for row in rows)]
    if not shared or any(len(set(row.seeds)) < len(row.seeds) for row in rows):
        return tuple(replace(row, seeds=()) for row in rows)
    scores = [dict(zip(row.seeds, row.scores, strict=True)) for row in rows]
    return tuple(
        replace(row, seeds=shared, scores=[own[seed] for seed in shared])
        for row, own in zip(rows, scores, strict=True)
    )


def recovered(row: ComparisonRow, baseline: ComparisonRow, teacher: ComparisonRow) -> float | None:
    """Share of the gap between student baseline and teacher that a run has closed.

        (distilled - baseline) / (teacher - baseline)    on means over seeds

    Returns:
        1 for the teacher's score, below 0 for a loss; None if the teacher is not better than the
        baseline.
    """
    gap = teacher.mean - baseline.mean
    return (row.mean - baseline.mean) / gap if gap > 0 else None
