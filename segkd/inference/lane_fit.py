"""Curves through the points of a lane that disregard stray points.

Row-wise decoding looks at each row alone: where two lanes are about equally probable it jumps
from one to the other. A fit keeps the points on which a curve agrees, the others have no influence:

1. consensus: of the parabolas through three points each, the one with most points near it (MSAC,
   Torr & Zisserman, CVIU 2000; all triples, or an even choice of them, so without chance);
2. a curve through these points by least squares with Tukey's biweight, so that points at the edge
   of the tolerance count little:
       poly    a cubic polynomial x(y), of lower degree for few points; the steadier one
       spline  a cubic spline whose second differences are penalised (P-spline, Eilers & Marx,
               Statistical Science 1996), for roads with several bends.

The curve is evaluated at the given rows between the lowest and the highest point that agrees.
"""

import functools
import math
from collections.abc import Callable
from itertools import combinations
from typing import Literal

import numpy as np

Kind = Literal["poly", "spline"]

TOLERANCE = 0.01  # of the image width, between a point and the curve
LARGEST_STEP = 16.0  # columns per row

_DEGREE = 3
_MOST_TRIPLES = 400
_LEAST_SHARE = 0.4  # of a lane's points that must agree
_ROUNDS = 10
_FLATTEST = 3.0  # columns per row; flatter pieces get no more leeway
_STIFFNESS = 0.05  # of the spline, against a weight of 1 per point
_POINTS_PER_PIECE = 4

_Curve = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def fit_rows(
    x: np.ndarray,
    y: np.ndarray,
    width: int,
    kind: Kind = "poly",
    *,
    tolerance: float = TOLERANCE,
    largest_step: float = LARGEST_STEP,
) -> np.ndarray:
    """A lane given by rows, replaced by a curve through the points that agree.

    Args:
        x: (R,) columns; NaN where the lane is absent.
        y: (R,) rows, in any order.
        width: of the image.
        kind: of the curve.
        tolerance: largest distance across the curve of a point that agrees, as a fraction of the
            width.
        largest_step: largest |Δx/Δy| between neighbouring rows, columns per row; beyond a larger
            step the shorter part of the lane is dropped.

    Returns:
        (R,) float64: the curve in all rows between the lowest and the highest point that agrees,
        NaN elsewhere; NaN everywhere if fewer than two, or than two fifths, of the points agree.
    """
    nothing = np.full(len(x), np.nan)
    order = np.argsort(y, kind="stable")
    known = order[~np.isnan(np.asarray(x, np.float64)[order])]
    known = _within(known, x[known] / width, tolerance)
    if len(known) < 2 or y[known[0]] == y[known[-1]]:
        return nothing
    place = _scaled(y[known], y[known])
    value = np.asarray(x, np.float64)[known] / width
    # A unit of ``place`` is half the lane's height
    unit = (y[known[-1]] - y[known[0]]) / (2 * width)
    agrees = _consensus(place, value, tolerance, unit, largest_step)
    if agrees is None:
        return nothing
    curve = _polynomial if kind == "poly" else _spline
    weight = agrees.astype(np.float64)
    for _ in range(_ROUNDS):
        now = curve(place, value, weight)
        distance = np.abs(now - value) / (tolerance * _leeway(_slopes(now, place) / unit))
        weight = np.where(distance < 1, (1 - np.minimum(distance, 1) ** 2) ** 2, 0.0)
        if np.count_nonzero(weight) < 2:
            return nothing
    kept = np.flatnonzero(weight)
    if len(kept) < _LEAST_SHARE * len(known):
        return nothing
    low, high = y[known[kept[0]]], y[known[kept[-1]]]
    inside = order[(y[order] >= low) & (y[order] <= high)]
    fitted = _evaluated(curve, place, value, weight, _scaled(y[inside], y[known])) * width
    steady = _longest_without_step(fitted, y[inside], largest_step)
    found = nothing
    found[inside[steady]] = fitted[steady]
    return found


def fit_points(
    points: np.ndarray,
    width: int,
    kind: Kind = "poly",
    *,
    tolerance: float = TOLERANCE,
    largest_step: float = LARGEST_STEP,
) -> np.ndarray | None:
    """As ``fit_rows``, for points (n, 2) as x, y; None if fewer than two are left."""
    x = fit_rows(
        points[:, 0], points[:, 1], width, kind, tolerance=tolerance, largest_step=largest_step
    )
    kept = ~np.isnan(x)
    return np.stack([x[kept], points[kept, 1]], axis=1) if kept.sum() > 1 else None


def _within(known: np.ndarray, value: np.ndarray, border: float) -> np.ndarray:
    """Rows ``known`` without those at the image's border, unless all but one are there.

    Below the row in which a lane leaves the image, its map is often still largest at the border.
    """
    inside = known[(value > border) & (value < 1 - border)]
    return inside if len(inside) > 1 else known


def _leeway(slopes: np.ndarray) -> np.ndarray:
    """Columns per unit of distance across a curve, from its slopes in columns per row: where a lane
    is flat, as outer ones are, a point one row too high is many columns aside."""
    return np.hypot(1.0, np.minimum(np.abs(slopes), _FLATTEST))


def _slopes(curve: np.ndarray, place: np.ndarray) -> np.ndarray:
    """(n,) slopes of a curve (n,), means of those to both neighbours."""
    steps = np.diff(curve) / np.maximum(np.diff(place), 1e-9)
    return (np.append(steps, steps[-1]) + np.insert(steps, 0, steps[0])) / 2


def _scaled(y: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Rows as −1 … 1 over the range of ``known``."""
    low, high = known.min(), known.max()
    return (2 * y - low - high) / (high - low)


def _consensus(
    place: np.ndarray, value: np.ndarray, tolerance: float, unit: float, steepest: float
) -> np.ndarray | None:
    """(n,) bool: the points near the best parabola, or line; None if there is none.

    Args:
        place: (n,) −1 … 1, ascending.
        value: (n,) columns as fractions of the width.
        tolerance: in units of ``value``, across the candidate.
        unit: of ``place``, as a fraction of the width.
        steepest: largest slope of a candidate, columns per row.
    """
    number = len(place)
    if number == 2:
        return np.ones(2, bool)
    triples = _triples(number)
    at, through = place[triples], value[triples]
    apart = np.diff(at, axis=1).min(1) > 0
    at, through = at[apart], through[apart]
    if not len(at):
        return None
    # Newton's form: f0 + f01 (t − t0) + f012 (t − t0) (t − t1)
    first = (through[:, 1] - through[:, 0]) / (at[:, 1] - at[:, 0])
    second = (through[:, 2] - through[:, 1]) / (at[:, 2] - at[:, 1])
    bend = (second - first) / (at[:, 2] - at[:, 0])
    t = place[None]
    curves = through[:, :1] + first[:, None] * (t - at[:, :1])
    curves = curves + bend[:, None] * (t - at[:, :1]) * (t - at[:, 1:2])
    slopes = (first[:, None] + bend[:, None] * (2 * t - at[:, :1] - at[:, 1:2])) / unit
    # 1.5, as a parabola is only nearly the lane
    distance = np.abs(curves - value) / (1.5 * tolerance * _leeway(slopes))
    score = np.maximum(0.0, 1.0 - distance**2).sum(1)
    # The slope of a parabola is largest at one of the ends
    score[np.abs(slopes[:, [0, -1]]).max(1) > steepest] = -1.0
    best = int(np.argmax(score))
    return distance[best] < 1 if score[best] > 0 else None


@functools.lru_cache(maxsize=128)
def _triples(number: int) -> np.ndarray:
    """(m, 3) ascending indices of points: all, or an even choice of wide triples."""
    if math.comb(number, 3) <= _MOST_TRIPLES:
        return np.array(list(combinations(range(number), 3)))
    draw = np.random.default_rng(number)
    keys = draw.random((4 * _MOST_TRIPLES, number))
    chosen = np.sort(np.argsort(keys, 1)[:, :3], 1)
    widest = np.argsort(-(chosen[:, 2] - chosen[:, 0]), kind="stable")
    return chosen[widest[: 2 * _MOST_TRIPLES : 2]]


def _evaluated(
    curve: _Curve, place: np.ndarray, value: np.ndarray, weight: np.ndarray, t: np.ndarray
) -> np.ndarray:
    """The fitted curve at t: points without weight are added, where it is read off."""
    places, values = np.concatenate([place, t]), np.concatenate([value, np.zeros(len(t))])
    return curve(places, values, np.concatenate([weight, np.zeros(len(t))]))[len(place) :]


def _polynomial(place: np.ndarray, value: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(n,) values at all places of the polynomial that fits those with a weight."""
    degree = min(_DEGREE, max(1, (int(np.count_nonzero(weight)) - 1) // 2))
    basis = np.polynomial.chebyshev.chebvander(place, degree)
    root = np.sqrt(weight)
    found, *_ = np.linalg.lstsq(basis * root[:, None], value * root, rcond=None)
    return basis @ found


def _spline(place: np.ndarray, value: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """As ``_polynomial``, of the penalised spline."""
    pieces = max(1, min(8, int(np.count_nonzero(weight)) // _POINTS_PER_PIECE))
    basis = _b_splines(place, pieces)
    bends = np.diff(np.eye(basis.shape[1]), n=2, axis=0)
    matrix = basis.T @ (weight[:, None] * basis) + _STIFFNESS * bends.T @ bends
    # Two points fix a line, which has no penalty; the small term is for numerical safety alone
    matrix += 1e-9 * np.eye(len(matrix))
    return basis @ np.linalg.solve(matrix, basis.T @ (weight * value))


def _b_splines(place: np.ndarray, pieces: int) -> np.ndarray:
    """(n, pieces + 3) cubic B-splines on equal pieces of −1 … 1 (Cox-de Boor recursion)."""
    knots = -1 + 2 / pieces * np.arange(-_DEGREE, pieces + _DEGREE + 1)
    t = np.clip(place, -1, 1 - 1e-12)[:, None]
    basis = ((t >= knots[:-1]) & (t < knots[1:])).astype(np.float64)
    for degree in range(1, _DEGREE + 1):
        rising = (t - knots[: -degree - 1]) / (knots[degree:-1] - knots[: -degree - 1])
        falling = (knots[degree + 1 :] - t) / (knots[degree + 1 :] - knots[1:-degree])
        basis = rising * basis[:, :-1] + falling * basis[:, 1:]
    return basis


def _longest_without_step(x: np.ndarray, y: np.ndarray, largest: float) -> slice:
    """The longest part of a curve, ascending in y, whose steps are small."""
    steps = np.abs(np.diff(x)) > largest * np.diff(y)
    edges = np.concatenate([[0], np.flatnonzero(steps) + 1, [len(x)]])
    longest = int(np.argmax(np.diff(edges)))
    return slice(int(edges[longest]), int(edges[longest + 1]))
