"""The CULane score at several IoU thresholds, from one pass over the images.

mF1 is the mean of F1 over the thresholds 0.5, 0.55, …, 0.95, as CLRNet's authors report it (Zheng
et al., "CLRNet: Cross Layer Refinement Network for Lane Detection", CVPR 2022, arXiv:2203.10350).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from segkd.errors import DataError
from segkd.metrics.culane import Counts

MEAN_OVER = tuple(round(0.5 + 0.05 * number, 2) for number in range(10))
_USUAL = 0.5
TOTAL = ""  # key of the sum over all images beside the names of categories


@dataclass(frozen=True)
class Thresholds:
    """Counts at several thresholds, in total and by category.

    Attributes:
        shown: the thresholds that were asked for; the first one gives the score.
        counts: by category, and ``TOTAL``, the counts by threshold: ``shown`` and ``MEAN_OVER``.
    """

    shown: tuple[float, ...] = (0.5,)
    counts: Mapping[str, Mapping[float, Counts]] = field(default_factory=dict)

    def mean_f1(self, name: str = TOTAL) -> float:
        """mF1 of a category or the total; NaN without annotated or without predicted lanes."""
        counts = self.counts.get(name, {})
        if not counts or not counts[MEAN_OVER[0]].defined:
            return math.nan
        return sum(_f1(counts[threshold]) for threshold in MEAN_OVER) / len(MEAN_OVER)

    def further(self, name: str = TOTAL) -> dict[float, Counts]:
        """Counts at the thresholds after the first one."""
        counts = self.counts.get(name, {})
        return {threshold: counts[threshold] for threshold in self.shown[1:] if counts}

    def to_dict(self, name: str = TOTAL) -> dict[str, Any]:
        """Plain data for JSON: ``mean_f1``, and ``thresholds`` if there are several."""
        if not self.counts:
            return {}
        mean = self.mean_f1(name)
        facts: dict[str, Any] = {"mean_f1": None if math.isnan(mean) else mean}
        if len(self.shown) > 1:
            counts = self.counts[name]
            facts["thresholds"] = {f"{t:g}": counts[t].to_dict() for t in self.shown}
        return facts

    def title(self) -> str:
        """The column of the score: ``F1 %``, with the threshold if it is not the usual one."""
        return "F1 %" if self.shown[0] == _USUAL else f"F1@{100 * self.shown[0]:g} %"

    def titles(self) -> list[str]:
        """Columns of a table: F1 at the further thresholds, and mF1; none for one threshold."""
        if len(self.shown) < 2:
            return []
        return [*(f"F1@{100 * threshold:g} %" for threshold in self.shown[1:]), "mF1 %"]

    def ratios(self, name: str = TOTAL) -> list[float]:
        """Values of ``titles``, NaN where they are undefined."""
        if len(self.shown) < 2:
            return []
        f1 = [_f1(one) if one.defined else math.nan for one in self.further(name).values()]
        return [*f1, self.mean_f1(name)]


def all_thresholds(shown: Sequence[float]) -> tuple[float, ...]:
    """The thresholds to count at: those asked for, then the others of ``MEAN_OVER``.

    Raises:
        DataError: none, one twice, or one out of range.
    """
    if not shown or len(set(shown)) < len(shown) or not all(0 <= one < 1 for one in shown):
        raise DataError(
            f"IoU thresholds are {list(shown)}; expected different ones of 0 or more, below 1, "
            "e.g. 0.5 0.75"
        )
    return (*shown, *(one for one in MEAN_OVER if one not in shown))


def by_threshold(counts: np.ndarray, thresholds: Sequence[float]) -> dict[float, Counts]:
    """Sums of counts (T, images, 3) or (T, 3) at T thresholds."""
    rows = counts.reshape(len(thresholds), -1, 3).sum(1).tolist()
    return {one: Counts(*row) for one, row in zip(thresholds, rows, strict=True)}


def _f1(counts: Counts) -> float:
    lanes = 2 * counts.tp + counts.fp + counts.fn
    return 2 * counts.tp / lanes if lanes else math.nan
