"""Sheets that show the lanes of several networks side by side."""

from collections.abc import Mapping, Sequence

import numpy as np

from segkd.data.lane_base import left_of_car
from segkd.viz.lane_overlay import draw_lanes
from segkd.viz.overlay import TILE, compose_sheet, resized

Slots = Sequence[np.ndarray | None]


def lane_sheet(
    images: Sequence[np.ndarray],
    columns: Mapping[str, Sequence[Slots]],
    palette: np.ndarray,
    names: Sequence[str],
    *,
    title: str = "",
) -> np.ndarray:
    """One row per image: the image, and its lanes in each column.

    Args:
        images: (H, W, 3) uint8 RGB each; sizes may differ.
        columns: by title, from left to right; per image and slot the points (n, 2) of a lane, or
            None.
        palette: (L, 3) uint8 RGB of the slots.
        names: L names of the slots.
        title: above everything; may be empty.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    rows = []
    for number, image in enumerate(images):
        scale = TILE / image.shape[1]
        small = resized(image, (max(1, round(image.shape[0] * scale)), TILE))
        row = [small]
        for lanes in columns.values():
            scaled = [None if lane is None else lane * scale for lane in lanes[number]]
            row.append(draw_lanes(small, scaled, palette, left=left_of_car(names)))
        rows.append(row)
    legend = list(zip(names, palette, strict=True))
    return compose_sheet(rows, ["image", *columns], legend, title)
