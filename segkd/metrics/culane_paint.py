"""Thick lines with the arithmetic of OpenCV 2 to 4, as horizontal runs of pixels.

The numbers of CULane rest on what ``cv2.line`` paints. OpenCV 5 paints some pixels of long lines
differently, so lines are computed here, in the integers (1/65536 of a pixel) of earlier versions:

- width 1: Bresenham's line, cut at the image first;
- other widths: a quadrilateral along the line and a disc of Bresenham's circle at both ends. The
  quadrilateral is filled row by row between its left and its right edge, whose x advances by a
  rounded slope, and its four sides are drawn as lines of their own, cut at the image.

Everything is done for many segments at once. Checked pixel by pixel with OpenCV 4.11.
"""

from dataclasses import dataclass

import numpy as np

_SHIFT = 16
_ONE = 1 << _SHIFT
_HALF = _ONE >> 1
_CORNERS = 4
_SMALL = 8  # pixels; moves up to this are painted once for all segments
_BITS = 13  # of a row or column of an image
_LAST = (1 << _BITS) - 1


@dataclass(frozen=True)
class Runs:
    """Horizontal runs of pixels within the image; they may overlap.

    Attributes:
        segment: (runs,) index of the segment.
        row, left, right: (runs,) row, first and last column.
    """

    segment: np.ndarray
    row: np.ndarray
    left: np.ndarray
    right: np.ndarray


def thick_lines(begin: np.ndarray, end: np.ndarray, size: np.ndarray, width: int) -> Runs:
    """What ``cv2.line(image, begin, end, 1, width)`` paints.

    Args:
        begin, end: (segments, 2) int64, x and y of both ends, within 32 bits.
        size: (segments, 2) or (2,), height and width of each segment's image.
        width: thickness of the lines in pixels.
    """
    size = np.broadcast_to(np.asarray(size, np.int64), begin.shape)
    numbers = np.arange(len(begin))
    if width == 1:
        return _joined([_thin_lines(begin, end, size)])
    parts = [_discs(numbers, point, size, (width + 1) // 2) for point in (begin, end)]
    moves = np.flatnonzero((begin != end).any(1))
    if len(moves):
        corners = _corners(begin[moves], end[moves], width)
        size, numbers = size[moves], numbers[moves]
        parts.append(_filled(numbers, corners, size))
        for corner in range(_CORNERS):
            side = corners[:, corner - 1], corners[:, corner]
            parts.append(_sides(numbers, *side, size))
    return _joined(parts)


def thick_paths(
    lane: np.ndarray, begin: np.ndarray, end: np.ndarray, size: tuple[int, int], width: int
) -> tuple[np.ndarray, ...]:
    """Pixels of lanes that consist of many segments, as ``union`` returns them.

    Args:
        lane: (segments,) their lane.
        begin, end, width: see ``thick_lines``.
        size: height and width of the image.
    """
    bounds, margin = np.array(size), width // 2 + 3
    inside = np.minimum(begin, end).min(1) >= margin
    inside &= (np.maximum(begin, end) < bounds[::-1] - margin).all(1)
    small = inside & (np.abs(end - begin).max(1) <= _SMALL)
    runs = thick_lines(begin[~small], end[~small], bounds, width)
    parts = [union(lane[~small][runs.segment], runs.row, runs.left, runs.right)]
    if small.any():
        parts.append(_repeated(lane[small], begin[small], (end - begin)[small], width))
    return union(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _repeated(
    lane: np.ndarray, begin: np.ndarray, move: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Runs of small moves inside the image: each kind is painted once, and shifted."""
    reach = _SMALL + width
    code = (move + _SMALL) @ [2 * _SMALL + 1, 1]
    _, first, kind = np.unique(code, return_index=True, return_inverse=True)
    centre = np.full((len(first), 2), reach)
    runs = thick_lines(centre, centre + move[first], np.array([2 * reach + 1] * 2), width)
    shape, row, left, right = union(runs.segment, runs.row, runs.left, runs.right)
    start = np.searchsorted(shape, np.arange(len(first) + 1))
    count = np.diff(start)[kind]
    own = np.repeat(np.arange(len(lane)), count)
    at = np.arange(len(own)) - np.repeat(np.cumsum(count) - count, count) + start[kind][own]
    x, y = (begin - reach).T[:, own]
    return union(lane[own], row[at] + y, left[at] + x, right[at] + x)


def union(
    lane: np.ndarray, row: np.ndarray, left: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Runs of lanes without overlap, sorted by lane, row and column; touching runs become one.

    Args:
        lane: (runs,) the lane of each run, below 2**24.
        row, left, right: (runs,) row, first and last column, below 8192.
    """
    key = (lane << _BITS) + row
    key = np.sort((((key << _BITS) + left) << _BITS) + right)
    left, right, place = (key >> _BITS) & _LAST, key & _LAST, key >> 2 * _BITS
    reach = np.maximum.accumulate((place << _BITS) + right)  # the furthest column so far in a row
    apart = (place[1:] != place[:-1]) | (left[1:] > (reach[:-1] & _LAST) + 1)
    begins = np.flatnonzero(np.append(True, apart)[: len(key)])
    ends = np.append(begins[1:], len(key))[: len(begins)] - 1
    place = place[begins]
    return place >> _BITS, place & _LAST, left[begins], reach[ends] & _LAST


def half_widths(radius: int) -> np.ndarray:
    """(2·radius + 1,) half-widths of the rows of a disc, from top to bottom."""
    half = np.zeros(radius + 1, np.int64)  # by distance from the centre
    across, along, error = radius, 0, 0
    while across >= along:
        half[along] = max(half[along], across)
        half[across] = max(half[across], along)
        error += 2 * along + 1
        along += 1
        if error > 0:
            error -= 2 * across - 1
            across -= 1
    return np.append(half[:0:-1], half)


def _joined(parts: list[tuple[np.ndarray, ...]]) -> Runs:
    return Runs(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _discs(
    numbers: np.ndarray, centre: np.ndarray, size: np.ndarray, radius: int
) -> tuple[np.ndarray, ...]:
    half = half_widths(radius)
    row = centre[:, 1, None] + np.arange(-radius, radius + 1)
    left, right = centre[:, :1] - half, centre[:, :1] + half
    height, width = size[:, :1], size[:, 1:]
    seen = (row >= 0) & (row < height) & (right >= 0) & (left < width)
    number = np.broadcast_to(numbers[:, None], row.shape)[seen]
    right = np.minimum(right, width - 1)
    return number, row[seen], np.maximum(left, 0)[seen], right[seen]


def _corners(begin: np.ndarray, end: np.ndarray, width: int) -> np.ndarray:
    """(segments, 4, 2) corners of the quadrilaterals, in 1/65536 of a pixel."""
    across = (end - begin)[:, ::-1] * [1.0, -1.0]
    length = np.sqrt(across[:, 1] * across[:, 1] + across[:, 0] * across[:, 0])
    half = (width + width % 2) * _HALF / length
    aside = np.rint(across * half[:, None]).astype(np.int64)
    begin, end = begin << _SHIFT, end << _SHIFT
    return np.stack([begin + aside, begin - aside, end - aside, end + aside], 1)


def _rounded(value: np.ndarray) -> np.ndarray:
    return (value + _HALF) >> _SHIFT


def _int32(value: np.ndarray) -> np.ndarray:
    return value.astype(np.int32).astype(np.int64)  # wraps around, as C++ does


class _Edge:
    """One of the two chains of sides along which the filling walks down, of many polygons."""

    def __init__(self, corners: np.ndarray, first: np.ndarray, row: np.ndarray, step: int) -> None:
        self.corners, self.step, self.each = corners, step, np.arange(len(first))
        self.stops = _rounded(corners[:, :, 1])
        self.corner, self.end = first, row
        self.x, self.slope = np.zeros_like(row), np.zeros_like(row)

    def advance(self, row: np.ndarray, going: np.ndarray) -> None:
        """Goes on to the side that passes ``row`` where the present one has ended."""
        looks = going & (row >= self.end)
        before = self.corner
        for _ in range(_CORNERS):
            if not looks.any():
                return
            after = (before + self.step) % _CORNERS
            stop = self.stops[self.each, after]
            found = looks & (stop > row)
            start = self.corners[self.each, before, 0]
            way = 2 * (self.corners[self.each, after, 0] - start) + stop - row
            rows = np.where(found, 2 * (stop - row), 1)
            slope = np.sign(way) * (np.abs(way) // rows)  # division towards zero
            self.slope = np.where(found, slope, self.slope)
            self.x = np.where(found, start, self.x)
            self.end = np.where(found, stop, self.end)
            self.corner = np.where(found, after, self.corner)
            looks, before = looks & ~found, after


def _filled(numbers: np.ndarray, corners: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, ...]:
    """Runs of the inside of quadrilaterals, one in each row but the last, which the sides paint."""
    low, high = _int32(_rounded(corners.min(1))), _int32(_rounded(corners.max(1)))
    bounds = size[:, ::-1]
    seen = ((high >= 0) & (low < bounds)).all(1)
    numbers, corners, bounds = numbers[seen], corners[seen], bounds[seen]
    row, last = low[seen, 1], np.minimum(high[seen, 1], bounds[:, 1])
    first = corners[:, :, 1].argmin(1)
    edges = [_Edge(corners, first, row, step) for step in (1, _CORNERS - 1)]
    found = []
    for _ in range(_CORNERS):
        going = row < last
        for edge in edges:
            edge.advance(row, going)
        stop = np.where(going, np.minimum(np.minimum(edges[0].end, edges[1].end), last), row)
        found.append(_between(numbers, edges, row, stop, bounds))
        for edge in edges:
            edge.x = edge.x + edge.slope * (stop - row)
        row = stop
    return tuple(np.concatenate(arrays) for arrays in zip(*found, strict=True))


def _between(
    numbers: np.ndarray,
    edges: list[_Edge],
    row: np.ndarray,
    stop: np.ndarray,
    bounds: np.ndarray,
) -> tuple[np.ndarray, ...]:
    """Runs between two edges from ``row`` up to ``stop``; rows above the image are left out."""
    start = np.maximum(row, 0)
    count = np.maximum(stop - start, 0)
    own = np.repeat(np.arange(len(row)), count)
    at = np.arange(len(own)) - np.repeat(np.cumsum(count) - count, count) + start[own]
    x = [edge.x[own] + edge.slope[own] * (at - row[own]) for edge in edges]
    left, right = _int32(_rounded(np.minimum(*x))), _int32(_rounded(np.maximum(*x)))
    width = bounds[own, 0]
    seen = (right >= 0) & (left < width)
    right = np.minimum(right, width - 1)
    return numbers[own][seen], at[seen], np.maximum(left, 0)[seen], right[seen]


def _cut(a: np.ndarray, b: np.ndarray, limit: np.ndarray) -> tuple[np.ndarray, ...]:
    """Parts of lines within the image.

    Args:
        a, b: (lines, 2) ends x and y, in the units of ``limit``.
        limit: (lines, 2) largest x and y.

    Returns:
        New ends, and (lines,) whether anything is left.
    """
    ends = [a.copy(), b.copy()]

    def outside(end: np.ndarray, axis: int) -> np.ndarray:
        return (end[:, axis] > limit[:, axis]).astype(int) - (end[:, axis] < 0)

    def crosses() -> np.ndarray:
        """Lines that may be partly inside: no side of the image has both ends beyond it."""
        codes = [np.stack([outside(end, 0), outside(end, 1)], 1) for end in ends]
        return ~((codes[0] == codes[1]) & (codes[0] != 0)).any(1)

    for axis in (1, 0):  # first at the top and bottom, then at the left and right
        cut = crosses()
        for end in ends:
            beyond = outside(end, axis)
            which = np.flatnonzero(cut & (beyond != 0))
            edge = np.where(beyond[which] > 0, limit[which, axis], 0)
            way = (ends[1] - ends[0])[which]
            far = (edge - end[which, axis]).astype(np.float64)
            end[which, 1 - axis] += (far * way[:, 1 - axis] / way[:, axis]).astype(np.int64)
            end[which, axis] = edge
    within = np.all([(end >= 0) & (end <= limit) for end in ends], axis=(0, 2))
    return ends[0], ends[1], within


def _swapped(a: np.ndarray, b: np.ndarray, swap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.where(swap[:, None], b, a), np.where(swap[:, None], a, b)


def _sides(
    numbers: np.ndarray, a: np.ndarray, b: np.ndarray, size: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Pixels of lines between ends in 1/65536 of a pixel, as runs of one pixel."""
    a, b, within = _cut(a, b, (size[:, ::-1] << _SHIFT) - 1)
    a, b, numbers, bounds = a[within], b[within], numbers[within], size[within, ::-1]
    reach = np.abs(b - a)
    flat = reach[:, 0] > reach[:, 1]
    axis = np.where(flat, 0, 1)
    each = np.arange(len(a))
    a, b = _swapped(a, b, (b - a)[each, axis] < 0)
    way = b - a
    minor = way[each, 1 - axis] << _SHIFT
    step = np.sign(minor) * (np.abs(minor) // (way[each, axis] | 1))
    count = (way[each, axis] >> _SHIFT) + 1
    own = np.repeat(each, count)
    k = np.arange(len(own)) - np.repeat(np.cumsum(count) - count, count)
    main = (_rounded(a[each, axis]))[own] + k
    other = (a[each, 1 - axis][own] + _HALF + step[own] * k) >> _SHIFT
    last = _rounded(b)
    x = np.append(np.where(flat[own], main, other), last[:, 0])
    y = np.append(np.where(flat[own], other, main), last[:, 1])
    own = np.append(own, each)
    seen = (x >= 0) & (x < bounds[own, 0]) & (y >= 0) & (y < bounds[own, 1])
    return numbers[own][seen], y[seen], x[seen], x[seen]


def _thin_lines(a: np.ndarray, b: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, ...]:
    """Lines of one pixel, as runs of one pixel."""
    a, b, within = _cut(a, b, size[:, ::-1] - 1)
    a, b = a[within], b[within]
    a, b = _swapped(a, b, b[:, 0] < a[:, 0])
    way = b - a
    reach, sign = np.abs(way), np.sign(way)
    each, axis = np.arange(len(a)), np.where(reach[:, 1] > reach[:, 0], 1, 0)
    long, short = reach[each, axis], reach[each, 1 - axis]
    own = np.repeat(each, long + 1)
    k = np.arange(len(own)) - np.repeat(np.cumsum(long + 1) - long - 1, long + 1)
    double = np.maximum(2 * long[own], 1)
    aside = -((long[own] - 2 * short[own] * k) // double)
    main = a[each, axis][own] + sign[each, axis][own] * k
    other = a[each, 1 - axis][own] + sign[each, 1 - axis][own] * aside
    x = np.where(axis[own] == 0, main, other)
    y = np.where(axis[own] == 0, other, main)
    return np.flatnonzero(within)[own], y, x, x
