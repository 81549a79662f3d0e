"""Lanes to class maps: assignment of lanes to slots, and painting.

Slots follow seg_label_generate, the tool that made CULane's own masks and lists: lanes are sorted
by where their line meets the lowest row, and the border between left and right is where the slope
changes sign (lanes left of the car lean right as they rise). TuSimple's public masks sort lanes by
their angle around 90 degrees, which is equivalent.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from segkd.metrics.culane_spline import SAMPLES, fit

Slots = tuple[np.ndarray | None, ...]

_FRACTION = 4  # bits of OpenCV's subpixel coordinates
_FARTHEST = 10_000.0  # pixels; larger coordinates overflow in OpenCV
_STEPS = 10  # straight pieces of the curve per interval
_LEAN = 0.05  # dx/dy below which a lane is upright, so that its position decides


def cleaned(lane: np.ndarray) -> np.ndarray:
    """Points (n, 2) float32 from bottom to top, without NaN and consecutive duplicates."""
    lane = np.asarray(lane, np.float32).reshape(-1, 2)
    lane = lane[np.isfinite(lane).all(axis=1)]
    if len(lane) < 2:
        return lane
    lane = lane[np.append(True, (np.diff(lane, axis=0) != 0).any(axis=1))]
    return lane[::-1] if lane[0, 1] < lane[-1, 1] else lane


def arranged(
    lanes: Sequence[np.ndarray],
    size: tuple[int, int],
    num_lanes: int,
    left: int | None = None,
    *,
    pair_is_ego: bool = False,
) -> Slots:
    """Assigns lanes to slots by their geometry.

    The innermost lane on the left gets slot ``left - 1``, the innermost on the right the next one;
    lanes beyond the outermost slots are dropped, and so are those of one point.

    Args:
        lanes: points (n, 2) each, in any order.
        size: (height, width) of the image.
        num_lanes: number of slots.
        left: of these, left of the car; None: ``num_lanes // 2``.
        pair_is_ego: CULane's rule that two lanes are always those next to the car.
    """
    lines = [lane for lane in map(cleaned, lanes) if len(lane) >= 2]
    lines.sort(key=lambda lane: _foot(lane, size[0]))
    border = 1 if pair_is_ego and len(lines) == 2 else _border(lines, size)
    slots: list[np.ndarray | None] = [None] * num_lanes
    for place, lane in enumerate(lines, (num_lanes // 2 if left is None else left) - border):
        if 0 <= place < num_lanes:
            slots[place] = lane
    return tuple(slots)


def flagged(lanes: Sequence[np.ndarray], flags: Sequence[int], size: tuple[int, int]) -> Slots:
    """Assigns lanes (n, 2) from left to right to the slots whose flag is 1, equally many."""
    lines = sorted(map(cleaned, lanes), key=lambda lane: _foot(lane, size[0]))
    ordered = iter(lines)
    return tuple(next(ordered) if flag else None for flag in flags)


def left_of_flags(
    images: Iterable[tuple[Sequence[np.ndarray], Sequence[int], tuple[int, int]]], expected: int
) -> int:
    """How many of a list's slots are left of the car, by where its images' lanes are.

    Args:
        images: lanes (n, 2), flags and (height, width) of each; those with another number of lanes
            than flags of 1 say nothing.
        expected: the answer unless most images contradict it and agree on another one.
    """
    votes: Counter[int] = Counter()
    number = 0
    for lanes, flags, size in images:
        lines = [lane for lane in map(cleaned, lanes) if len(lane) >= 2]
        if not lines or len(lines) != sum(flags):
            continue
        number += 1
        lines.sort(key=lambda lane: _foot(lane, size[0]))
        before = np.concatenate([[0], np.cumsum(flags)])  # lanes in the first slots
        votes.update(np.flatnonzero(before == _border(lines, size)).tolist())
    found = max(votes, key=lambda left: (votes[left], left == expected), default=expected)
    return found if votes[found] > number / 2 > votes[expected] else expected


def painted(
    lanes: Sequence[np.ndarray | None],
    size: tuple[int, int],
    width: int,
    *,
    left: int | None = None,
    curved: bool = True,
) -> np.ndarray:
    """Paints lanes as a class map (H, W) uint8: i + 1 on the lane of slot i, 0 elsewhere.

    Inner lanes are painted over outer ones.

    Args:
        lanes: points (n, 2) by slot, in pixels; a row of NaN separates lines of one slot.
        size: (height, width).
        width: of the lanes in pixels.
        left: number of slots left of the car; None: half of them.
        curved: connect points by the spline of the CULane metric instead of straight lines.
    """
    import cv2

    mask = np.zeros(size, np.uint8)
    middle = (len(lanes) if left is None else 2 * left) / 2 - 0.5
    for slot in sorted(range(len(lanes)), key=lambda slot: -abs(slot - middle)):
        for line in parts(lanes[slot]):
            points = curve(line) if curved else line
            points = np.clip(points, -_FARTHEST, _FARTHEST) * 2**_FRACTION
            points = np.rint(points).astype(np.int32)[:, None]
            cv2.polylines(mask, [points], False, slot + 1, width, cv2.LINE_8, _FRACTION)
    return mask


def parts(lane: np.ndarray | None) -> list[np.ndarray]:
    """The lines (n, 2) of a slot, separated by rows of NaN; those of one point are dropped."""
    if lane is None:
        return []
    gaps = np.flatnonzero(np.isnan(lane).any(axis=1))
    lines = [cleaned(part) for part in np.split(lane, gaps)]
    return [line for line in lines if len(line) >= 2]


def joined(lanes: Sequence[np.ndarray]) -> np.ndarray | None:
    """Several lines (n, 2) as points of one slot, separated by rows of NaN; None without lines."""
    gap = np.full((1, 2), np.nan, np.float32)
    pieces = [piece for lane in lanes for piece in (gap, lane)]
    return np.concatenate(pieces[1:]) if pieces else None


def curve(points: np.ndarray) -> np.ndarray:
    """Points (m, 2) on the curve that the CULane metric draws through points (n, 2)."""
    if len(points) < 3:
        return points
    curves = fit(np.ascontiguousarray(points, np.float32), np.array([len(points)]))
    share = np.arange(_STEPS) * (SAMPLES / _STEPS)  # of the steps of the metric
    t = curves.step[:-1, None] * share
    powers = np.stack([np.ones_like(t), t, t**2, t**3])
    x, y = (np.einsum("kp,kps->ps", axis[:, :-1], powers).ravel() for axis in (curves.x, curves.y))
    return np.concatenate([np.stack([x, y], axis=1), points[-1:]])


def present(label: np.ndarray, num_lanes: int) -> np.ndarray:
    """(num_lanes,) bool: whether each slot has a pixel in a class map (H, W)."""
    return np.array([(label == slot + 1).any() for slot in range(num_lanes)], bool)


def _border(lines: list[np.ndarray], size: tuple[int, int]) -> int:
    """Number of the sorted lines that are left of the car."""
    left = [_is_left(line, size) for line in lines]
    return left.index(False) if False in left else len(left)


def _is_left(line: np.ndarray, size: tuple[int, int]) -> bool:
    lean, _ = _fitted(line[: max(2, len(line) // 2)])
    if abs(lean) > _LEAN:
        return lean < 0
    return _foot(line, size[0]) <= (size[1] - 1) / 2


def _foot(line: np.ndarray, height: int) -> float:
    """x at which the straight line through a lane meets the lowest row."""
    lean, at_zero = _fitted(line)
    return at_zero + lean * (height - 1)


def _fitted(line: np.ndarray) -> tuple[float, float]:
    """dx/dy and x at y = 0 of the least-squares line; vertical for a horizontal lane."""
    x, y = line.astype(np.float64).T
    spread = ((y - y.mean()) ** 2).sum()
    lean = float(((y - y.mean()) * (x - x.mean())).sum() / spread) if spread else 0.0
    return lean, float(x.mean() - lean * y.mean())
