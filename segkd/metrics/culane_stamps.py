"""Tables of what ``cv2.line`` paints, from which outlines of lanes are read without painting.

After rounding, a lane's samples are mostly one pixel apart. A thick segment of such a small move
is always the same shape: the discs at both ends and a few pixels between them. The shapes, and
where the image border changes them, are measured once with the installed OpenCV. Moves that are
not in the tables are marked, and lanes with such moves are painted.
"""

import functools
from dataclasses import dataclass

import numpy as np

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
            lower corners all others have the shape of the side (checked with OpenCV 4.9 and 5.0).
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
    """The tables for segments of a width in pixels; None if OpenCV paints no regular discs."""
    return _Measurement(width).result()


class _Measurement:
    def __init__(self, width: int) -> None:
        self.width = width
        self.zone = width // 2 + 6
        self.extras: dict[tuple, int] = {}

    def result(self) -> Stamps | None:
        disc = self._free(0, 0)
        spans = _row_spans(disc)
        centre = len(disc) // 2
        rows = np.flatnonzero(disc.any(1)) - centre
        reach = int(rows.max())
        half = np.array([spans[centre + o][1] - centre for o in rows.tolist()])
        regular = len(rows) == 2 * reach + 1 and all(
            spans[centre + o] == (centre - h, centre + h, False)
            for o, h in zip(rows.tolist(), half.tolist(), strict=True)
        )
        if not regular or any(self._changed(0, 0, s) for s in _SIDES):
            return None
        shape = np.full((2 * REACH_Y + 1, 2 * REACH_X + 1, 4 * self.zone + 1), -1)
        blocked = np.zeros((*shape.shape[:2], 2), bool)
        for dy in range(-REACH_Y, REACH_Y + 1):
            for dx in range(-REACH_X, REACH_X + 1):
                if dy:
                    place = dy + REACH_Y, dx + REACH_X
                    shape[place] = self._shapes(dx, dy)
                    blocked[place] = [bool(self._changed(dx, dy, s)) for s in _SIDES[2:]]
        columns = _padded(self.extras)
        return Stamps(reach, half, self.zone, self._straight(), shape, blocked, *columns)

    def _straight(self) -> int:
        for far in range(1, REACH_X + 1):
            for dx in (-far, far):
                found = self._extras(self._free(dx, 0), dx, 0)
                if found != ((), ()) or any(self._changed(dx, 0, side) for side in _SIDES):
                    return far - 1
        return REACH_X

    def _shapes(self, dx: int, dy: int) -> np.ndarray:
        """Shape of a move at each column of ``Stamps.column``."""
        index = np.full(4 * self.zone + 1, self._index(self._extras(self._free(dx, dy), dx, dy)))
        for side in _SIDES[:2]:
            for away, image in self._changed(dx, dy, side).items():
                mark = self._index(self._extras(image, dx, dy))
                index[away + self.zone if side == "left" else 3 * self.zone - away] = mark
        return index

    def _index(self, extras: tuple | None) -> int:
        return -1 if extras is None else self.extras.setdefault(extras, len(self.extras))

    def _extras(self, image: np.ndarray, dx: int, dy: int) -> tuple | None:
        """Pixels beyond the discs, as (row, column) left and right of them; None if irregular."""
        centre = len(image) // 2
        discs = self._free(0, 0)
        both = _row_spans(np.maximum(discs, np.roll(discs, (dy, dx), (0, 1))))
        left, right = [], []
        for row, (first, last, gap) in _row_spans(image).items():
            if gap or row not in both:
                return None
            left += [(row - centre, first - centre)] if first < both[row][0] else []
            right += [(row - centre, last - centre)] if last > both[row][1] else []
        return tuple(left), tuple(right)

    def _free(self, dx: int, dy: int) -> np.ndarray:
        """A segment of the move from the centre of an image that contains it."""
        image = np.zeros((4 * self.zone + 1,) * 2, np.uint8)
        return self._paint(image, 2 * self.zone, 2 * self.zone, dx, dy)

    def _changed(self, dx: int, dy: int, side: str) -> dict[int, np.ndarray]:
        """Where a border changes the shape: distance of the start (negative: outside) -> image.

        The images are like those of ``_free``, 0 outside the true image.
        """
        free, size, changed = self._free(dx, dy), 4 * self.zone + 1, {}
        for away in range(-self.zone, self.zone):
            outside = 2 * self.zone - away  # rows or columns of the free image that are outside
            whole = slice(None)
            window = {
                "left": (whole, slice(outside, None)),
                "right": (whole, slice(size - outside)),
                "top": (slice(outside, None), whole),
                "bottom": (slice(size - outside), whole),
            }[side]
            image = np.zeros_like(free)
            true = np.ascontiguousarray(image[window])
            x = away if side == "left" else 2 * self.zone
            y = away if side == "top" else 2 * self.zone
            image[window] = self._paint(true, x, y, dx, dy)
            if not np.array_equal(image[window], free[window]):
                changed[away] = image
        return changed

    def _paint(self, image: np.ndarray, x: int, y: int, dx: int, dy: int) -> np.ndarray:
        import cv2

        return cv2.line(image, (x, y), (x + dx, y + dy), 1, self.width)


def _row_spans(image: np.ndarray) -> dict[int, tuple[int, int, bool]]:
    """First and last painted column of each painted row, and whether there is a gap between."""
    spans = {}
    for row in np.flatnonzero(image.any(1)).tolist():
        columns = np.flatnonzero(image[row])
        low, high = int(columns[0]), int(columns[-1])
        spans[row] = low, high, high - low + 1 > len(columns)
    return spans


def _padded(extras: dict[tuple, int]) -> list[np.ndarray]:
    arrays = []
    for side, unused in ((0, _NONE), (1, -_NONE)):
        longest = max((len(shape[side]) for shape in extras), default=0)
        filled = [[*shape[side], *[(0, unused)] * (longest - len(shape[side]))] for shape in extras]
        table = np.array(filled, np.int64).reshape(len(extras), longest, 2)
        arrays += [table[..., 0], table[..., 1]]
    return arrays
