"""Tables of painted segments, from which outlines of lanes are read without painting.

After rounding, a lane's samples are mostly one pixel apart. A thick segment of such a small move
is always the same shape: the discs at both ends and a few pixels between them. The shapes, and
where the image border changes them, are taken once from ``culane_paint``. Moves that are not in
the tables are marked, and lanes with such moves are painted.
"""

import functools
from dataclasses import dataclass

import numpy as np

from segkd.metrics.culane_paint import thick_lines, union

REACH_X, REACH_Y = 3, 2  # the moves in the tables
_SIDES = ("left", "right", "top", "bottom")
_NONE = 10_000  # beyond any image


@dataclass(frozen=True)
class Stamps:
    """Shapes of segments of one width.

    Attributes:
        reach: rows that a disc extends above and below its centre.
        half: (2·reach + 1,) half-widths of its rows.
        zone: distance to the image border within which it may change a shape.
        straight: longest sideways move that paints only its discs and the span between them.
        shape: (5, 7, 4·zone + 1) index of the shape of a move (dy + 2, dx + 3) at a column (see
            ``column``); -1 where the move must be painted.
        blocked: (5, 7, 2) True for moves that must be painted near the top, near the bottom. In the
            lower corners all others have the shape of the side.
        left_row, left: (shapes, n) pixels of a shape to the left of its discs, as row and
            column relative to the start of the move; unused ones have the column 10,000.
        right_row, right: the same to the right; unused ones have the column -10,000.
    """

    reach: int
    half: np.ndarray
    zone: int
    straight: int
    shape: np.ndarray
    blocked: np.ndarray
    left_row: np.ndarray
    left: np.ndarray
    right_row: np.ndarray
    right: np.ndarray

    def column(self, x: np.ndarray, width: int) -> np.ndarray:
        """Index (n,) into the last axis of ``shape`` for columns x (n,) of an image of this width.

        All positions away from the border share one index.
        """
        near, far = x + self.zone, x - (width - 3 * self.zone - 1)
        middle = np.full_like(x, 2 * self.zone)
        return np.where(near < 2 * self.zone, np.maximum(near, 0), np.maximum(far, middle)).clip(
            0, 4 * self.zone
        )


@functools.lru_cache(maxsize=8)
def stamps(width: int) -> Stamps | None:
    """The tables for segments of a width in pixels; None if discs are not regular."""
    return _Measurement(width).result()


Rows = dict[int, tuple[int, int, bool]]  # first and last column, whether there is a gap between


class _Measurement:
    """Paints each move from the centre (2·zone, 2·zone) of an image of 4·zone + 1 pixels."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.zone = width // 2 + 6
        self.centre, self.size = 2 * self.zone, 4 * self.zone + 1
        self.extras: dict[tuple, int] = {}

    def result(self) -> Stamps | None:
        self.disc, changed = self._painted(0, 0)
        offsets = [row - self.centre for row in sorted(self.disc)]
        reach = offsets[-1]
        half = [self.disc[self.centre + offset][1] - self.centre for offset in offsets]
        regular = offsets == list(range(-reach, reach + 1)) and all(
            self.disc[self.centre + offset] == (self.centre - wide, self.centre + wide, False)
            for offset, wide in zip(offsets, half, strict=True)
        )
        if not regular or any(changed.values()):
            return None
        shape = np.full((2 * REACH_Y + 1, 2 * REACH_X + 1, self.size), -1)
        blocked = np.zeros((*shape.shape[:2], 2), bool)
        for dy in range(-REACH_Y, REACH_Y + 1):
            for dx in range(-REACH_X, REACH_X + 1):
                if dy:
                    place = dy + REACH_Y, dx + REACH_X
                    free, changed = self._painted(dx, dy)
                    shape[place] = self._shapes(free, changed, dx, dy)
                    blocked[place] = [bool(changed[side]) for side in _SIDES[2:]]
        columns = _padded(self.extras)
        straight = self._straight()
        return Stamps(reach, np.array(half), self.zone, straight, shape, blocked, *columns)

    def _straight(self) -> int:
        for far in range(1, REACH_X + 1):
            for dx in (-far, far):
                free, changed = self._painted(dx, 0)
                if self._extras(free, dx, 0) != ((), ()) or any(changed.values()):
                    return far - 1
        return REACH_X

    def _shapes(
        self, free: Rows, changed: dict[str, dict[int, Rows]], dx: int, dy: int
    ) -> np.ndarray:
        """Shape of a move at each column of ``Stamps.column``."""
        index = np.full(self.size, self._index(self._extras(free, dx, dy)))
        for side in _SIDES[:2]:
            for away, rows in changed[side].items():
                mark = self._index(self._extras(rows, dx, dy))
                index[away + self.zone if side == "left" else 3 * self.zone - away] = mark
        return index

    def _index(self, extras: tuple | None) -> int:
        return -1 if extras is None else self.extras.setdefault(extras, len(self.extras))

    def _extras(self, rows: Rows, dx: int, dy: int) -> tuple | None:
        """Pixels beyond the discs, as (row, column) left and right of them; None if irregular."""
        left, right = [], []
        for row, (first, last, gap) in rows.items():
            discs = [self.disc[row]] if row in self.disc else []
            if row - dy in self.disc:
                low, high, _ = self.disc[row - dy]
                discs.append((low + dx, high + dx, False))
            if gap or not discs:
                return None
            place = row - self.centre
            left += [(place, first - self.centre)] if first < min(d[0] for d in discs) else []
            right += [(place, last - self.centre)] if last > max(d[1] for d in discs) else []
        return tuple(left), tuple(right)

    def _painted(self, dx: int, dy: int) -> tuple[Rows, dict[str, dict[int, Rows]]]:
        """A move far from all borders, and by side where a border changes it.

        The latter is by distance of the start from the border, negative outside, and has only what
        is within the true image.
        """
        away = np.arange(-self.zone, self.zone)
        outside = self.centre - away  # rows or columns of the free image that are outside
        none = np.zeros_like(outside)
        low = {"left": (none, outside), "top": (outside, none)}  # the first row and column
        high = {"right": (none, outside), "bottom": (outside, none)}  # those cut at the end
        zero = none, none
        begin = np.concatenate([np.stack(low.get(side, zero), 1) for side in _SIDES])
        cut = begin + np.concatenate([np.stack(high.get(side, zero), 1) for side in _SIDES])
        free = self._runs(np.zeros((1, 2), np.int64), np.zeros((1, 2), np.int64), dx, dy)
        seen = self._runs(begin, cut, dx, dy)
        cases, number = np.divmod(np.arange(len(begin) * len(free)), len(free))
        expected = np.column_stack([cases, free[number, 1:]])
        limit = begin + self.size - cut  # rows and columns up to here are in the true image
        expected[:, 2] = np.maximum(expected[:, 2], begin[cases, 1])
        expected[:, 3] = np.minimum(expected[:, 3], limit[cases, 1] - 1)
        inside = (expected[:, 1] >= begin[cases, 0]) & (expected[:, 1] < limit[cases, 0])
        expected = expected[inside & (expected[:, 2] <= expected[:, 3])]
        changed: dict[str, dict[int, Rows]] = {side: {} for side in _SIDES}
        for case in np.unique(np.setxor1d(_codes(seen), _codes(expected)) >> 39).tolist():
            side, place = divmod(case, len(away))
            changed[_SIDES[side]][int(away[place])] = _rows(seen[seen[:, 0] == case])
        return _rows(free), changed

    def _runs(self, begin: np.ndarray, cut: np.ndarray, dx: int, dy: int) -> np.ndarray:
        """Runs (n, 4) of the move in images without the first and last rows and columns."""
        start = self.centre - begin[:, ::-1]
        runs = thick_lines(start, start + np.array([dx, dy]), self.size - cut, self.width)
        case, row, left, right = union(runs.segment, runs.row, runs.left, runs.right)
        top, side = begin[case].T
        return np.stack([case, row + top, left + side, right + side], 1)


def _codes(runs: np.ndarray) -> np.ndarray:
    return runs @ [1 << 39, 1 << 26, 1 << 13, 1]


def _rows(runs: np.ndarray) -> Rows:
    """First and last column of each painted row, and whether there is a gap between."""
    rows: Rows = {}
    for _, row, left, right in runs.tolist():
        rows[row] = (rows[row][0], right, True) if row in rows else (left, right, False)
    return rows


def _padded(extras: dict[tuple, int]) -> list[np.ndarray]:
    arrays = []
    for side, unused in ((0, _NONE), (1, -_NONE)):
        longest = max((len(shape[side]) for shape in extras), default=0)
        filled = [[*shape[side], *[(0, unused)] * (longest - len(shape[side]))] for shape in extras]
        table = np.array(filled, np.int64).reshape(len(extras), longest, 2)
        arrays += [table[..., 0], table[..., 1]]
    return arrays
