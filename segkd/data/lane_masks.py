"""Lanes to class maps: which lane belongs to which slot, and how it is painted.

Slots follow seg_label_generate, the tool that made CULane's own masks and lists: lanes are put in
order by where their line meets the lowest row, and the border between left and right is where the
lean changes (lanes left of the car lean right as they rise). TuSimple's public masks order lanes
by their angle around 90 degrees, which is the same.
"""

from collections.abc import Sequence

import numpy as np

from segkd.metrics.culane_spline import SAMPLES, fit

Slots = tuple[np.ndarray | None, ...]

_FRACTION = 4  # bits: OpenCV paints at sixteenths of a pixel
_FARTHEST = 10_000.0  # its integers overflow beyond
_STEPS = 10  # straight pieces of the curve between two points
_LEAN = 0.05  # dx/dy below which a lane stands upright, so that its place decides


def cleaned(lane: np.ndarray) -> np.ndarray:
    """(n, 2) float32 points from bottom to top, finite, no point twice in a row."""
    lane = np.asarray(lane, np.float32).reshape(-1, 2)
    lane = lane[np.isfinite(lane).all(axis=1)]
    if len(lane) < 2:
        return lane
    lane = lane[np.append(True, (np.diff(lane, axis=0) != 0).any(axis=1))]
    return lane[::-1] if lane[0, 1] < lane[-1, 1] else lane


def arranged(
    lanes: Sequence[np.ndarray], size: tuple[int, int], num_lanes: int, *, pair_is_ego: bool = False
) -> Slots:
    """Lanes by slot.

    The innermost lane on the left gets slot ``num_lanes / 2 - 1``, the innermost on the right the
    next one; lanes beyond the outermost slots are left out, and so are those of one point.

    Args:
        lanes: (n, 2) points each, in any order.
        size: height and width of the image.
        num_lanes: slots, an even number.
        pair_is_ego: CULane's rule that two lanes are those beside the car, wherever they are.
    """
    lines = [lane for lane in map(cleaned, lanes) if len(lane) >= 2]
    lines.sort(key=lambda lane: _foot(lane, size[0]))
    border = 1 if pair_is_ego and len(lines) == 2 else _border(lines, size)
    slots: list[np.ndarray | None] = [None] * num_lanes
    for place, lane in enumerate(lines, num_lanes // 2 - border):
        if 0 <= place < num_lanes:
            slots[place] = lane
    return tuple(slots)


def flagged(lanes: Sequence[np.ndarray], flags: Sequence[int], size: tuple[int, int]) -> Slots:
    """Lanes from left to right into the slots whose flag is 1; there must be as many."""
    lines = sorted(map(cleaned, lanes), key=lambda lane: _foot(lane, size[0]))
    ordered = iter(lines)
    return tuple(next(ordered) if flag else None for flag in flags)


def painted(
    lanes: Sequence[np.ndarray | None], size: tuple[int, int], width: int, *, curved: bool = True
) -> np.ndarray:
    """(H, W) uint8: slot i + 1 within half of ``width`` of a lane's line, 0 elsewhere.

    Inner lanes lie over outer ones, where lanes meet.

    Args:
        lanes: by slot, in pixels; a row of NaN parts lines of one slot.
        size: height and width.
        width: in pixels.
        curved: join points by the spline of the CULane metric instead of straight lines.
    """
    import cv2

    mask = np.zeros(size, np.uint8)
    middle = (len(lanes) - 1) / 2
    for slot in sorted(range(len(lanes)), key=lambda slot: -abs(slot - middle)):
        for line in parts(lanes[slot]):
            points = curve(line) if curved else line
            points = np.clip(points, -_FARTHEST, _FARTHEST) * 2**_FRACTION
            points = np.rint(points).astype(np.int32)[:, None]
            cv2.polylines(mask, [points], False, slot + 1, width, cv2.LINE_8, _FRACTION)
    return mask


def parts(lane: np.ndarray | None) -> list[np.ndarray]:
    """The lines of a slot, each of two points or more."""
    if lane is None:
        return []
    gaps = np.flatnonzero(np.isnan(lane).any(axis=1))
    lines = [cleaned(part) for part in np.split(lane, gaps)]
    return [line for line in lines if len(line) >= 2]


def joined(lanes: Sequence[np.ndarray]) -> np.ndarray | None:
    """Several lines as the points of one slot, parted by rows of NaN; None without any."""
    gap = np.full((1, 2), np.nan, np.float32)
    pieces = [piece for lane in lanes for piece in (gap, lane)]
    return np.concatenate(pieces[1:]) if pieces else None


def curve(points: np.ndarray) -> np.ndarray:
    """(n, 2) points to more of them, on the curve that the CULane metric draws."""
    if len(points) < 3:
        return points
    curves = fit(np.ascontiguousarray(points, np.float32), np.array([len(points)]))
    share = np.arange(_STEPS) * (SAMPLES / _STEPS)  # in steps of the metric
    t = curves.step[:-1, None] * share
    powers = np.stack([np.ones_like(t), t, t**2, t**3])
    x, y = (np.einsum("kp,kps->ps", axis[:, :-1], powers).ravel() for axis in (curves.x, curves.y))
    return np.concatenate([np.stack([x, y], axis=1), points[-1:]])


def present(label: np.ndarray, num_lanes: int) -> np.ndarray:
    """(num_lanes,) bool: which slots have a pixel in a class map (H, W)."""
    return np.array([(label == slot + 1).any() for slot in range(num_lanes)], bool)


def _border(lines: list[np.ndarray], size: tuple[int, int]) -> int:
    """How many of the ordered lines are left of the car."""
    left = [_is_left(line, size) for line in lines]
    return left.index(False) if False in left else len(left)


def _is_left(line: np.ndarray, size: tuple[int, int]) -> bool:
    lean, _ = _fitted(line[: max(2, len(line) // 2)])
    if abs(lean) > _LEAN:
        return lean < 0
    return _foot(line, size[0]) <= (size[1] - 1) / 2


def _foot(line: np.ndarray, height: int) -> float:
    """Where the straight line through a lane meets the lowest row."""
    lean, at_zero = _fitted(line)
    return at_zero + lean * (height - 1)


def _fitted(line: np.ndarray) -> tuple[float, float]:
    """dx/dy and x at y = 0 of the least-squares line; upright for a level one."""
    x, y = line.astype(np.float64).T
    spread = ((y - y.mean()) ** 2).sum()
    lean = float(((y - y.mean()) * (x - x.mean())).sum() / spread) if spread else 0.0
    return lean, float(x.mean() - lean * y.mean())
