"""The lanes of LLAMAS: dashes that were projected into the image become a point per row.

The rules are those of the benchmark's program (``spline_creator.py``, ``label_file_scripts.py`` of
karstenBehrendt/unsupervised_llamas), on which its scores rest:

- lanes with fewer than 2 markers, or whose markers begin within 20 rows, are dropped; the rest are
  counted anew from the car on (l0, l1, … and r0, r1, …);
- the marker nearest to the camera is continued to the border of the image;
- in each row x is the mean of the markers there, rounded; rows between markers are interpolated.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NAMES = ("l1", "l0", "r0", "r1")
_ROWS, _COLUMNS = 717, 1276
_LEAST_HEIGHT, _LEAST_MARKERS = 20, 2
_LONG = 2  # rows; shorter markers count with their beginning alone


@dataclass(frozen=True)
class _Marker:
    """A dash from its lower to its upper end, x and y in pixels, and its distance from the car."""

    begin: tuple[int, int]
    end: tuple[int, int]
    near: float


def lanes_of_markers(lanes: Sequence[Mapping[str, Any]]) -> list[np.ndarray | None]:
    """l1, l0, r0 and r1 as points (n, 2) from top to bottom, None where there is none.

    Args:
        lanes: of a label file, plain data with ``lane_id`` and ``markers``.

    Raises:
        KeyError, TypeError, ValueError: they are malformed.
    """
    found = {lane["lane_id"]: [_marker(one) for one in lane["markers"]] for lane in lanes}
    kept = {name: own for name, own in found.items() if _is_kept(own)}
    named = _counted(kept)
    return [_points(named[name]) if name in named else None for name in NAMES]


def _marker(item: Mapping[str, Any]) -> _Marker:
    begin, end = (
        (int(item[key]["x"]), int(item[key]["y"])) for key in ("pixel_start", "pixel_end")
    )
    return _Marker(begin, end, float(item["world_start"]["z"]))


def _is_kept(markers: Sequence[_Marker]) -> bool:
    rows = [marker.begin[1] for marker in markers]
    return len(markers) >= _LEAST_MARKERS and max(rows) - min(rows) >= _LEAST_HEIGHT


def _counted(lanes: Mapping[str, list[_Marker]]) -> dict[str, list[_Marker]]:
    """The lanes, named from the car on without gaps."""
    numbers: dict[str, int] = defaultdict(int)
    named = {}
    for name in sorted(lanes):
        side = name[:1]
        if side in ("l", "r"):
            named[f"{side}{numbers[side]}"] = lanes[name]
            numbers[side] += 1
    return named


def _points(markers: list[_Marker]) -> np.ndarray | None:
    """(n, 2) points of a lane, one per row; None if there are fewer than two."""
    seen: dict[int, list[float]] = defaultdict(list)
    for marker in [*_continued(markers), *markers]:
        (x, y), (end_x, end_y) = marker.begin, marker.end
        seen[y].append(x)
        height = y - end_y
        if height > _LONG:
            slope = (end_x - x) / height
            for step in range(height + 1):
                seen[y - step].append(round(x + slope * step))
    rows = sorted(row for row in seen if 0 <= row < _ROWS)
    if len(rows) < 2:
        return None
    mean = [sum(seen[row]) / len(seen[row]) for row in rows]
    every = np.arange(rows[0], rows[-1] + 1)
    points = np.stack([np.interp(every, rows, mean), every], 1)
    return points[points[:, 0] >= 0]


def _continued(markers: Sequence[_Marker]) -> list[_Marker]:
    """The nearest marker's straight line from the border of the image to its beginning."""
    slanted = [m for m in markers if m.begin[0] != m.end[0] and m.begin[1] != m.end[1]]
    nearest = min(slanted, key=lambda marker: marker.near, default=None)
    if nearest is None or nearest.near < 0:
        return []
    (x, y), (end_x, end_y) = nearest.begin, nearest.end
    x_slope, y_slope = (end_x - x) / (end_y - y), (end_y - y) / (end_x - x)
    foot = x + (_ROWS - 1 - y) * x_slope
    border: tuple[float, float] = (foot, _ROWS - 1)
    if foot < 0:
        border = 0, y - x * y_slope
    elif foot > _COLUMNS:
        border = _COLUMNS, y + (_COLUMNS - x) * y_slope
    begin = round(border[0]), round(border[1])
    return [_Marker(begin, nearest.begin, 1.0)]
