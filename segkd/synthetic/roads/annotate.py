"""Lanes as CULane annotates them: lines on the ground, up to where they can be told apart.

A lane hidden by cars, glare or missing paint is annotated nevertheless; the annotation ends at a
crest, at a crossing and in fog.
"""

import numpy as np

from segkd.synthetic.roads.course import RoadCamera
from segkd.synthetic.roads.plan import SLOTS, Road

Lanes = tuple[np.ndarray | None, ...]

_FARTHEST = 0.042  # annotations end where the ego lane is this fraction of the image wide
_POINTS = 72
_FLATTEST = 5.0  # columns per row of the ego lane
_LEAST = 0.06  # fraction of the image height; shorter lanes are not annotated


def lanes_of(road: Road, camera: RoadCamera, size: tuple[int, int], clear: float) -> Lanes:
    """The annotated lanes of a scene, by slot.

    Args:
        road: the plan.
        camera: the view.
        size: (height, width) of the image.
        clear: visibility in metres.

    Returns:
        Per slot, points (n, 2) float32 from bottom to top, x and y in pixels with whole numbers
        at pixel centres; None where there is no lane.
    """
    if road.crossing is not None and road.crossing[0] < 12.0:
        return (None,) * SLOTS
    (rows, columns), end = size, _last_depth(road, camera, clear)
    lowest = (rows - 0.5 - camera.horizon * rows) / columns
    highest = float(camera.rows(np.array([end]))[0])
    if highest >= lowest:
        return (None,) * SLOTS
    below = np.linspace(lowest, highest, _POINTS)
    z = camera.depth(below)
    y = camera.horizon * rows + below * columns - 0.5
    middle, distinct = camera.course.across(z), slice(0, _distinct(road, camera, below, z))
    lanes: list[np.ndarray | None] = []
    for boundary in road.slots():
        lane = None
        if boundary is not None:
            x = (0.5 + camera.focal * (boundary.side + middle) / z) * columns - 0.5
            lane = _inside(np.stack([x, y], 1)[distinct], columns)
        if lane is None or np.ptp(lane[:, 1]) < _LEAST * rows:
            lanes.append(None)
        else:
            lanes.append(lane.astype(np.float32))
    return tuple(lanes)


def _last_depth(road: Road, camera: RoadCamera, clear: float) -> float:
    end = min(camera.focal * road.lane / _FARTHEST, clear, camera.crest)
    if road.crossing is not None:
        end = min(end, road.crossing[0] - 2.0)
    return end


def _distinct(road: Road, camera: RoadCamera, below: np.ndarray, z: np.ndarray) -> int:
    """The number of points before the road turns so sharply that its lines merge in the image."""
    way = road.boundaries[road.left].side + road.lane / 2 + camera.course.across(z)
    lean = np.abs(np.diff(camera.focal * way / z) / np.diff(below))
    return int(np.argmax(lean > _FLATTEST)) + 1 if (lean > _FLATTEST).any() else len(z)


def _inside(lane: np.ndarray, columns: int) -> np.ndarray | None:
    """The longest part of a lane between the left and right image border."""
    shown = (lane[:, 0] >= 0) & (lane[:, 0] <= columns - 1)
    changes = np.flatnonzero(np.diff(np.concatenate([[False], shown, [False]]).astype(np.int8)))
    if not len(changes):
        return None
    runs = changes.reshape(-1, 2)
    start, stop = runs[np.argmax(runs[:, 1] - runs[:, 0])]
    pieces = [lane[start:stop]]
    if start > 0:
        pieces.insert(0, _border(lane[start - 1], lane[start], columns))
    if stop < len(lane):
        pieces.append(_border(lane[stop], lane[stop - 1], columns))
    return np.concatenate(pieces)


def _border(outside: np.ndarray, inside: np.ndarray, columns: int) -> np.ndarray:
    """(1, 2) where a lane crosses the border between two of its points."""
    border = 0.0 if outside[0] < 0 else columns - 1.0
    part = (border - outside[0]) / (inside[0] - outside[0])
    return np.array([[border, outside[1] + part * (inside[1] - outside[1])]])
