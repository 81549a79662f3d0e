"""The road from above, with its lanes, as a panel beside an image."""

import math
from collections.abc import Sequence

import numpy as np

from segkd.viz.lane_overlay import write_line

_STEPS = (10, 20, 50, 100, 200, 500)  # metres between lines across the panel
_MOST_LINES = 22  # across the panel, so that their texts do not touch
_GRID = (120, 120, 120)
_CAR = (1.8, 3.0)  # metres: width, and length of its sign


def bird_panel(
    image: np.ndarray,
    matrix: np.ndarray,
    lanes: Sequence[np.ndarray],
    colors: Sequence[Sequence[int]],
    *,
    reach: float,
    half: float = 9.0,
    height: int | None = None,
    text: str = "",
) -> np.ndarray:
    """The road from above: the car at the bottom, ``reach`` metres ahead at the top.

    Args:
        image: (H, W, 3) uint8 RGB.
        matrix: (3, 3), from pixels to metres right and ahead.
        lanes: points (n, 2) of each lane as x, z in metres.
        colors: RGB of each lane.
        reach: metres ahead at the top.
        half: metres to each side.
        height: of the panel; None: that of the image.
        text: written at the top.

    Returns:
        (height, width, 3) uint8 RGB, 0.55 times as wide as high; across, metres are larger than
        along.
    """
    import cv2

    rows = height or image.shape[0]
    columns = max(2, round(0.55 * rows))
    across, along = columns / (2 * half), rows / reach
    to_panel = np.array([[across, 0, columns / 2], [0, -along, rows], [0, 0, 1.0]])
    panel = cv2.warpPerspective(np.ascontiguousarray(image), to_panel @ matrix, (columns, rows))
    panel = np.ascontiguousarray(panel)
    scale = rows / 540
    step = next((step for step in _STEPS if reach <= step * _MOST_LINES), math.ceil(reach))
    for z in range(step, int(reach) + 1, step):
        row = round(rows - z * along)
        cv2.line(panel, (0, row), (columns, row), _GRID, 1)
        place = (round(columns - 62 * scale), row - 4)
        font = cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(panel, f"{z} m", place, font, 0.5 * scale, (230, 230, 230), 1, cv2.LINE_AA)
    for lane, color in zip(lanes, colors, strict=True):
        if len(lane) > 1:
            points = lane * (across, -along) + (columns / 2, rows)
            fixed = np.rint(points.clip(-1e4, 1e4) * 8).astype(np.int32)[:, None]
            thick = max(1, round(4 * scale))
            cv2.polylines(panel, [fixed], False, tuple(map(int, color)), thick, cv2.LINE_AA, 3)
    wide, long = _CAR[0] / 2 * across, _CAR[1] * along
    middle = columns / 2
    car = np.array([[middle - wide, rows], [middle, rows - long], [middle + wide, rows]])
    cv2.fillPoly(panel, [np.rint(car).astype(np.int32)], (255, 255, 255), cv2.LINE_AA)
    if text:
        write_line(panel, text, smallest=0.8 * scale)
    return panel
