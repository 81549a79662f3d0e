"""Painted lanes as spans of rows, and their overlap: equal to painting, without pixels.

A lane that runs up or down row by row covers one span in each row, from the leftmost disc to the
rightmost. Any other lane (turning back, two far points, extreme coordinates) is painted once, and
its spans are read from the painting, in as many layers as a row has spans.
"""

from dataclasses import dataclass

import numpy as np

from segkd.metrics.culane_paint import thick_paths, union
from segkd.metrics.culane_spline import SAMPLES, blocks, fit
from segkd.metrics.culane_stamps import REACH_X, REACH_Y, Stamps, stamps

_FAR = 15_000  # coordinates up to here fit the 16-bit path
_EMPTY = 12_000  # beyond any image; twice that fits 16 bits
_BLOCK = 1024  # pairs compared at a time
_CHUNK = 500_000  # runs painted at a time, roughly
_INT_MIN = -(2**31)
Layers = list[tuple[np.ndarray, np.ndarray]]  # first and last columns (rows,) of each layer


@dataclass(frozen=True)
class Spans:
    """The pixels of lanes. Layers are disjoint, and most lanes have one.

    Attributes:
        top: the image row of the first column of ``left`` and ``right``.
        left, right: (layers, rows) int16, first and last image column; empty where left > right.
        first: (lanes + 1,) the layers of lane i are first[i] up to first[i + 1].
        area: (lanes,) number of pixels.
        drawn: (lanes,) False for lanes of fewer than two points.
    """

    top: int
    left: np.ndarray
    right: np.ndarray
    first: np.ndarray
    area: np.ndarray
    drawn: np.ndarray


def draw(points: np.ndarray, counts: np.ndarray, size: tuple[int, int], width: int) -> Spans:
    """Spans of lanes as the official program paints them.

    Args:
        points: (sum of counts, 2) float32, x and y.
        counts: (lanes,) number of points of each lane.
        size: height and width of the image.
        width: thickness of the lines in pixels.
    """
    curves = fit(points, counts)
    table = stamps(width)
    if table is not None and min(size) < 8 * table.zone:
        table = None
    left = np.full((len(counts), size[0]), _EMPTY, np.int16)
    right = np.full_like(left, -_EMPTY)
    layers: dict[int, Layers] = {}
    for lane, x, y in blocks(curves):
        odd = lane
        if table is not None:
            odd = _Tracing(lane, x, y, table, size).write(left, right)
        if len(odd):
            own = np.isin(lane, odd)
            layers |= _painted(lane[own], x[own], y[own], size, width)
    first = np.arange(len(counts) + 1)
    if layers:
        left, right, first = _with_layers(left, right, layers)
    area = np.add.reduceat(np.append(_lengths(left, right), 0), first)[:-1]
    used = np.flatnonzero((left <= right).any(0))
    top = int(used[0]) if len(used) else size[0]
    return Spans(top, left[:, top:].copy(), right[:, top:].copy(), first, area, counts >= 2)


def overlap(a: Spans, b: Spans, lane_a: np.ndarray, lane_b: np.ndarray) -> np.ndarray:
    """Number of common pixels of pairs of lanes.

    Args:
        a, b: painted lanes.
        lane_a, lane_b: (pairs,) indices of lanes of a and of b.

    Returns:
        (pairs,) int64.
    """
    layers_a, layers_b = np.diff(a.first)[lane_a], np.diff(b.first)[lane_b]
    times = layers_a * layers_b
    pair = np.repeat(np.arange(len(times)), times)
    within = np.arange(len(pair)) - np.repeat(np.cumsum(times) - times, times)
    from_a = a.first[lane_a][pair] + within // layers_b[pair]
    from_b = b.first[lane_b][pair] + within % layers_b[pair]
    top = max(a.top, b.top)
    left_a, right_a = a.left[:, top - a.top :], a.right[:, top - a.top :]
    left_b, right_b = b.left[:, top - b.top :], b.right[:, top - b.top :]
    shared = np.zeros(len(pair), np.int64)
    for begin in range(0, len(pair), _BLOCK):
        block = slice(begin, begin + _BLOCK)
        left = np.maximum(left_a[from_a[block]], left_b[from_b[block]])
        right = np.minimum(right_a[from_a[block]], right_b[from_b[block]])
        shared[block] = _lengths(left, right)
    return np.bincount(pair, shared, len(times)).astype(np.int64)


def _lengths(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Pixels of each layer: (layers, rows) -> (layers,)."""
    length = right - left
    length += 1
    np.maximum(length, 0, out=length)
    return length.sum(1, dtype=np.int32)


class _Tracing:
    """Spans of some lanes from their rounded samples (pieces, 50), by the tables of stamps."""

    def __init__(
        self, lane: np.ndarray, x: np.ndarray, y: np.ndarray, table: Stamps, size: tuple[int, int]
    ) -> None:
        self.table, self.size = table, size
        begins = np.append(True, lane[1:] != lane[:-1])
        self.lanes = lane[begins]
        self.local = np.cumsum(begins) - 1  # of each piece
        self.odd = np.zeros(len(self.lanes), bool)
        x, y = self._within_reach(x, y)
        self.x, self.y = x.astype(np.int16).ravel(), y.astype(np.int16).ravel()
        last = np.append(np.flatnonzero(begins)[1:] * SAMPLES, len(self.x)) - 1
        self._rows(last)
        self._moves()

    def _within_reach(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if min(x.min(), y.min()) > -_FAR and max(x.max(), y.max()) < _FAR:  # not so if NaN
            return x, y
        near = ((np.abs(x) < _FAR) & (np.abs(y) < _FAR)).all(1)
        self.odd[self.local[~near]] = True
        return np.where(near[:, None], x, 0), np.where(near[:, None], y, 0)

    def _rows(self, last: np.ndarray) -> None:
        """Runs of samples in one row; ``last`` is the last sample of each lane."""
        x, y = self.x, self.y
        ends = np.empty(len(y), bool)
        np.not_equal(y[1:], y[:-1], out=ends[:-1])
        ends[last] = True
        self.stop = np.flatnonzero(ends)
        begin = np.append(0, self.stop[:-1] + 1)
        self.row, self.owner = y[self.stop].astype(np.int64), self.local[self.stop // SAMPLES]
        sideways = x[1:] - x[:-1]
        sideways[self.stop[:-1]] = 0
        np.abs(sideways, out=sideways)
        straight = self.table.straight
        if sideways.max(initial=0) > straight:
            far = np.flatnonzero(sideways > straight)
            self.odd[self.local[far // SAMPLES]] = True
        self.low = np.minimum(x[begin], x[self.stop])
        self.high = np.maximum(x[begin], x[self.stop])
        # The path along a row is as long as the distance of its ends, unless a lane turns there.
        starts = np.append(0, last[:-1] + 1)
        way = np.add.reduceat(np.append(sideways, 0), starts, dtype=np.int64)
        far = np.bincount(self.owner, self.high - self.low, len(starts))
        for lane in np.flatnonzero(way != far).tolist():
            own, runs = slice(starts[lane], last[lane] + 1), np.flatnonzero(self.owner == lane)
            self.low[runs] = np.minimum.reduceat(x[own], begin[runs] - starts[lane])
            self.high[runs] = np.maximum.reduceat(x[own], begin[runs] - starts[lane])

    def _moves(self) -> None:
        """Moves from row to row; lanes that move in both directions or lack a shape are odd."""
        goes = self.owner[1:] == self.owner[:-1]
        at = self.stop[:-1][goes]
        self.mover = self.owner[:-1][goes]
        self.move_x, self.move_y = self.x[at].astype(np.int64), self.row[:-1][goes]
        dx, dy = self.x[at + 1] - self.move_x, self.row[1:][goes] - self.move_y
        count = len(self.odd)
        falls = np.bincount(self.mover, dy > 0, count)
        self.odd |= (falls > 0) & (falls < np.bincount(self.mover, minlength=count))
        wild = (np.abs(dx) > REACH_X) | (np.abs(dy) > REACH_Y)
        dx, dy = np.where(wild, 0, dx) + REACH_X, np.where(wild, 1, dy) + REACH_Y
        table, (height, width) = self.table, self.size
        column = table.column(self.move_x, width)
        self.shape = table.shape[dy, dx, column]
        must = wild | (self.shape < 0)
        zone = table.zone
        upper, lower = self.move_y < zone, self.move_y >= height - zone
        if upper.any() or lower.any():
            seen = (self.move_x >= -zone) & (self.move_x < width + zone)
            blocked = table.blocked[dy, dx]
            aside = column != 2 * zone
            must |= seen & (upper & (blocked[:, 0] | aside) | lower & blocked[:, 1])
        self.odd[self.mover[must]] = True

    def write(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Fills in the spans of lanes (lanes, height); returns those that must be painted."""
        even, reach = ~self.odd, self.table.reach
        used = even[self.owner] & (self.row >= -reach) & (self.row < self.size[0] + reach)
        row, owner = self.row[used], self.owner[used]
        if len(row):
            begin = max(int(row.min()) - reach, 0)
            end = min(int(row.max()) + reach + 1, self.size[0])
            start = owner * (end - begin + 2 * reach) + row - begin
            shape = len(even), end - begin + 2 * reach
            lows = self._discs(shape, start + reach, self.low[used])
            highs = self._discs(shape, start + reach, -self.high[used])
            self._between_discs(lows, highs, begin, end)
            rows = slice(begin, end)
            kept = self.lanes[even]
            left[kept, rows] = np.maximum(lows[even, : end - begin], 0)
            right[kept, rows] = np.minimum(-highs[even, : end - begin], self.size[1] - 1)
        return self.lanes[self.odd]

    def _discs(self, shape: tuple[int, int], index: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Least (value − half-width) of the discs that reach a row: (lanes, rows)."""
        reach, half = self.table.reach, self.table.half
        size = shape[0] * shape[1]
        padded = np.full(size + 2 * reach, _EMPTY, np.int16)
        padded[index] = value
        least = padded[reach : reach + size] - half[reach]
        least = least.astype(np.int16)
        scratch = np.empty_like(least)
        for away in range(1, reach + 1):
            before, after = padded[reach - away :][:size], padded[reach + away :][:size]
            np.minimum(before, after, out=scratch)
            scratch -= np.int16(half[reach + away])
            np.minimum(least, scratch, out=least)
        return least.reshape(shape)

    def _between_discs(self, lows: np.ndarray, highs: np.ndarray, begin: int, end: int) -> None:
        table = self.table
        for bound, rows, columns, sign in (
            (lows, table.left_row, table.left, 1),
            (highs, table.right_row, table.right, -1),
        ):
            for pixel in range(columns.shape[1]):
                real = np.flatnonzero((np.abs(columns[:, pixel]) < 2 * table.zone)[self.shape])
                row = self.move_y[real] + (rows[:, pixel] - begin)[self.shape[real]]
                inside = (row >= 0) & (row < end - begin)
                row, real = row[inside], real[inside]
                value = sign * (self.move_x[real] + columns[:, pixel][self.shape[real]])
                owner = self.mover[real]
                further = np.flatnonzero(value < bound[owner, row])
                place = owner[further], row[further]
                np.minimum.at(bound, place, value[further].astype(np.int16))


def _painted(
    lane: np.ndarray, x: np.ndarray, y: np.ndarray, size: tuple[int, int], width: int
) -> dict[int, Layers]:
    """Layers of lanes whose samples x, y (pieces, 50) belong to ``lane`` (pieces,), ascending.

    Samples that no 32-bit integer can hold, as those of a lane whose spline is NaN because of two
    equal points, lie at the lowest integer, as in the official program on x86.
    """
    owner = np.repeat(lane, x.shape[1])
    path = np.stack([x.ravel(), y.ravel()], 1).astype(np.float64)
    path = np.where((path >= _INT_MIN) & (path < -_INT_MIN), path, _INT_MIN).astype(np.int64)
    first = np.append(True, owner[1:] != owner[:-1])
    moves = ~first & np.append(False, (path[1:] != path[:-1]).any(1))
    moving = np.isin(owner, owner[moves])
    end = np.flatnonzero(moves | (first & ~moving))  # a lane of one point is a disc there
    begin = end - moves[end]
    length = np.abs(path[end] - path[begin]).max(1).clip(max=max(size))
    chunk = np.cumsum(4 * (length + width)) // _CHUNK
    parts = []
    for number in range(int(chunk[-1]) + 1):
        own = chunk == number
        parts.append(thick_paths(owner[end[own]], path[begin[own]], path[end[own]], size, width))
    lanes, rows, left, right = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    if len(parts) > 1:
        lanes, rows, left, right = union(lanes, rows, left, right)
    return _layers(lane, lanes, rows, left, right, size)


def _layers(
    lanes: np.ndarray,
    lane: np.ndarray,
    row: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    size: tuple[int, int],
) -> dict[int, Layers]:
    """Runs (n,) without overlap as layers of the lanes; a lane without pixels has none."""
    layers: dict[int, Layers] = {index: [] for index in np.unique(lanes).tolist()}
    place = lane * size[0] + row
    ordinal = np.arange(len(place)) - np.searchsorted(place, place)
    begins = np.flatnonzero(np.append(True, lane[1:] != lane[:-1])[: len(lane)])
    for begin, end in zip(begins, np.append(begins[1:], len(lane)), strict=False):
        own = ordinal[begin:end]
        count = int(own.max()) + 1
        low = np.full((count, size[0]), _EMPTY, np.int16)
        high = np.full((count, size[0]), -_EMPTY, np.int16)
        low[own, row[begin:end]] = left[begin:end]
        high[own, row[begin:end]] = right[begin:end]
        layers[int(lane[begin])] = list(zip(low, high, strict=True))
    return layers


def _with_layers(
    left: np.ndarray, right: np.ndarray, layers: dict[int, Layers]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Replaces the rows of painted lanes by their layers."""
    count = np.ones(len(left), np.int64)
    for lane, own in layers.items():
        count[lane] = max(len(own), 1)
    first = np.append(0, np.cumsum(count))
    source = np.repeat(np.arange(len(left)), count)
    left, right = left[source], right[source]
    for index, own in layers.items():
        for offset, (low, high) in enumerate(own):
            left[first[index] + offset], right[first[index] + offset] = low, high
    return left, right, first
