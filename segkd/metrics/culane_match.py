"""The official matcher of CULane: Kuhn-Munkres with a tolerance, so not always the best matching.

An edge counts as tight if its slack is below 0.01, and edges are tried in order. With IoUs of
0.4984 and 0.5009 it keeps the first, which is no hit. NaN (two lanes outside the image) is tight
nowhere, and where only NaN is left the search ends, for all further lanes too. That is part of
the published numbers and kept.
"""

import math
from collections.abc import Sequence

TOLERANCE = 1e-2
_ENDLESS = 1e10
_LOWEST = -1e5

Matrix = Sequence[Sequence[float]]


def count_hits(ious: Matrix, threshold: float) -> int:
    """True positives: matched pairs whose IoU is above the threshold.

    Args:
        ious: rows are annotations, columns predictions; neither is empty.
    """
    rows = ious if len(ious) <= len(ious[0]) else list(zip(*ious, strict=True))
    best = _plain_matching(rows) if threshold >= TOLERANCE else None
    if best is None:
        best = [rows[u][v] for u, v in enumerate(match(rows)) if v >= 0]
    return sum(iou > threshold for iou in best)


def _plain_matching(rows: Matrix) -> list[float] | None:
    """The matched IoUs if each row has one tight column and no two share it, else None.

    Rows without overlap take whatever is left and give way to others, so they change nothing.
    """
    best, taken = [], set()
    for row in rows:
        highest = max(row)
        total = sum(row)
        if total != total:
            return None
        if highest < TOLERANCE:
            continue
        tight = [v for v, iou in enumerate(row) if highest - iou < TOLERANCE]
        if len(tight) > 1 or tight[0] in taken:
            return None
        taken.add(tight[0])
        best.append(highest)
    return best


def match(weights: Matrix) -> list[int]:
    """For each row the matched column, or -1; there are at most as many rows as columns."""
    return _Matching(weights).run()


class _Matching:
    def __init__(self, weights: Matrix) -> None:
        self.weights = weights
        self.row_label = [max([_LOWEST, *(w for w in row if w == w)]) for row in weights]
        self.column_label = [0.0] * len(weights[0])
        self.match_of_row = [-1] * len(weights)
        self.match_of_column = [-1] * len(weights[0])

    def run(self) -> list[int]:
        for row in range(len(self.weights)):
            while not self._augment(row, rows := set(), columns := set()):
                step = self._smallest_slack(rows, columns)
                if step == _ENDLESS:
                    return self.match_of_row
                for u in rows:
                    self.row_label[u] -= step
                for v in columns:
                    self.column_label[v] += step
        return self.match_of_row

    def _augment(self, u: int, rows: set[int], columns: set[int]) -> bool:
        rows.add(u)
        for v in range(len(self.column_label)):
            if v in columns or not math.fabs(self._slack(u, v)) < TOLERANCE:
                continue
            columns.add(v)
            owner = self.match_of_column[v]
            if owner == -1 or self._augment(owner, rows, columns):
                self.match_of_column[v], self.match_of_row[u] = u, v
                return True
        return False

    def _smallest_slack(self, rows: set[int], columns: set[int]) -> float:
        free = [v for v in range(len(self.column_label)) if v not in columns]
        slacks = (self._slack(u, v) for u in rows for v in free)
        return min([_ENDLESS, *(slack for slack in slacks if slack == slack)])

    def _slack(self, u: int, v: int) -> float:
        return self.row_label[u] + self.column_label[v] - self.weights[u][v]
