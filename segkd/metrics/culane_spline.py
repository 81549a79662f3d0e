"""The curve that the official CULane program draws through a lane's points, for many at once.

Three or more points: a natural cubic spline over the chord length, 50 samples per interval and the
last point. Differences of points are taken in float32, all else in float64 in the order of the
C++ code, and samples are stored as float32, so results are equal bit for bit. Two points are joined
by a straight line without samples.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

SAMPLES = 50
_BLOCK = 1500  # intervals per block
_CACHED = 200  # intervals sampled at a time, to stay within the cache


@dataclass(frozen=True)
class Curves:
    """Cubic pieces of several lanes, end to end.

    Each lane has its intervals and one more piece that stays at its last point; lanes with fewer
    than two points have none.

    Attributes:
        step: (pieces,) float64, increment of the parameter per sample.
        x, y: (4, pieces) float64, coefficients of 1, t, t², t³.
        lane: (pieces,) index of the lane of each piece.
        smooth: (lanes,) False for lanes of two points, whose pieces are constant.
    """

    step: np.ndarray
    x: np.ndarray
    y: np.ndarray
    lane: np.ndarray
    smooth: np.ndarray


def fit(points: np.ndarray, counts: np.ndarray) -> Curves:
    """Curves through lanes.

    Args:
        points: (sum of counts, 2) float32, x and y.
        counts: (lanes,) number of points of each lane.
    """
    starts = np.cumsum(counts) - counts
    drawn = np.flatnonzero(counts >= 2)
    pieces = counts[drawn]
    lane = np.repeat(drawn, pieces)
    first = np.cumsum(pieces) - pieces  # of each drawn lane, in the arrays of pieces
    within = np.arange(len(lane)) - np.repeat(first, pieces)
    own = points[np.repeat(starts[drawn], pieces) + within]
    x = np.zeros((4, len(lane)))
    y = np.zeros((4, len(lane)))
    step = np.zeros(len(lane))
    x[0], y[0] = own[:, 0], own[:, 1]
    with np.errstate(all="ignore"):
        for several in _alike(pieces):
            slots = first[several] + np.arange(pieces[several].max())[:, None]
            inside = np.arange(len(slots))[:, None] < pieces[several]
            _natural_spline(own, slots, inside, step, x, y)
    return Curves(step, x, y, lane, counts >= 3)


def _alike(pieces: np.ndarray) -> Iterator[np.ndarray]:
    """Groups of lanes with three points or more and of similar length, to limit padding."""
    order = np.argsort(pieces, kind="stable")
    order = order[pieces[order] >= 3]
    while len(order):
        longest = 1.3 * pieces[order[0]] + 2
        group = int(np.searchsorted(pieces[order], longest, side="right"))
        yield order[:group]
        order = order[group:]


def _natural_spline(
    own: np.ndarray,
    slots: np.ndarray,
    inside: np.ndarray,
    step: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
) -> None:
    """Fills in the coefficients of lanes: ``slots`` (most points, lanes) are their pieces.

    ``inside`` is False below a shorter lane's last point; there the system is the identity and
    its right side 0, so that the second derivative is 0 from the last point on.
    """
    slots = np.where(inside, slots, 0)
    interval = inside[1:]
    two = own.T[:, slots]  # (2, points, lanes) float32
    rise = (two[:, 1:] - two[:, :-1]).astype(np.float64)  # the difference is taken in float32
    chord = np.sqrt(rise[0] * rise[0] + rise[1] * rise[1])
    slope = rise / chord
    inner = interval[1:]
    right = np.where(inner, 6 * (slope[:, 1:] - slope[:, :-1]), 0.0)
    diagonal = np.where(inner, 2 * (chord[:-1] + chord[1:]), 1.0)
    lower = np.where(inner, chord[:-1], 0.0)
    bend = _solve(lower, diagonal, np.where(inner, chord[1:], 0.0), right)
    bend[:, 1:][:, ~interval] = 0.0
    linear = slope - (2 * chord * bend[:, :-1] + chord * bend[:, 1:]) / 6
    cubic = (bend[:, 1:] - bend[:, :-1]) / (6 * chord)
    target = slots[:-1][interval]
    step[target] = chord[interval] / SAMPLES
    for axis, coefficients in enumerate((x, y)):
        coefficients[1, target] = linear[axis][interval]
        coefficients[2, target] = bend[axis, :-1][interval] / 2
        coefficients[3, target] = cubic[axis][interval]


def _solve(
    lower: np.ndarray, diagonal: np.ndarray, upper: np.ndarray, right: np.ndarray
) -> np.ndarray:
    """Second derivatives (2, n, lanes) at n points by the Thomas algorithm; 0 at both ends."""
    size = len(diagonal)
    upper[0] /= diagonal[0]
    right[:, 0] /= diagonal[0]
    for i in range(1, size):
        pivot = diagonal[i] - lower[i] * upper[i - 1]
        upper[i] /= pivot
        right[:, i] -= lower[i] * right[:, i - 1]
        right[:, i] /= pivot
    bend = np.zeros((2, size + 2, diagonal.shape[1]))
    bend[:, size] = right[:, size - 1]
    for i in range(size - 2, -1, -1):
        np.subtract(right[:, i], upper[i] * bend[:, i + 2], out=bend[:, i + 1])
    return bend


def blocks(curves: Curves) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Samples of the lanes in blocks, rounded as for drawing.

    Yields:
        The lane of each piece (pieces,), and x and y (pieces, 50) float32 with whole values (half
        to even), NaN where the official program has it.
    """
    lane = curves.lane
    changes = np.append(lane[1:] != lane[:-1], True)[: len(lane)]
    begin = last = 0
    for end in (np.flatnonzero(changes) + 1).tolist():
        if end - begin > _BLOCK and last > begin:
            yield _samples(curves, slice(begin, last))
            begin = last
        last = end
    if last > begin:
        yield _samples(curves, slice(begin, last))


def _samples(curves: Curves, part: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    lane = curves.lane[part]
    x, y = np.empty((2, len(lane), SAMPLES), np.float32)
    with np.errstate(all="ignore"):
        for begin in range(0, len(lane), _CACHED):
            some = slice(part.start + begin, min(part.start + begin + _CACHED, part.stop))
            t = curves.step[some, None] * np.arange(SAMPLES)
            t2 = t * t
            t3 = t2 * t
            for axis, out in ((curves.x, x), (curves.y, y)):
                _polynomial(axis[:, some], t, t2, t3, out[begin : begin + len(t)])
    return lane, x, y


def _polynomial(
    coefficients: np.ndarray, t: np.ndarray, t2: np.ndarray, t3: np.ndarray, out: np.ndarray
) -> None:
    constant, linear, square, cubic = coefficients[:, :, None]
    value = linear * t
    value += constant
    scratch = square * t2
    value += scratch
    np.multiply(cubic, t3, out=scratch)
    value += scratch
    out[:] = value
    np.rint(out, out=out)
