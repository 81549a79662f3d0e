"""Sheets of training samples: augmented images as the student sees them, with their labels."""

from collections.abc import Sequence

import numpy as np

from segkd.data.lane_masks import parts
from segkd.viz.lane_overlay import draw_lanes
from segkd.viz.overlay import TILE, blend, comparison_sheet, compose_sheet, resized


def sample_sheet(
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray | None],
    lanes: Sequence[Sequence[np.ndarray]] | None,
    palette: np.ndarray,
    classes: Sequence[str],
    *,
    title: str = "",
) -> np.ndarray:
    """One row per image: the image, its label, and the points of its lanes.

    Args:
        images: (H, W, 3) uint8 RGB each.
        labels: (H, W) class ids each, or None.
        lanes: of lane sets, per image and slot the points (n, 2) of a lane; rows of NaN separate
            lines or are padding.
        palette: (K, 3) uint8 RGB.
        classes: K names.
        title: above everything; may be empty.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    if lanes is None:
        return comparison_sheet(images, labels, {}, palette, classes, title=title)
    rows = []
    for image, label, slots in zip(images, labels, lanes, strict=True):
        scale = TILE / image.shape[1]
        small = resized(image, (max(1, round(image.shape[0] * scale)), TILE))
        lines = [(slot, line * scale) for slot, one in enumerate(slots, 1) for line in parts(one)]
        colours = palette[[slot for slot, _ in lines]]
        drawn = draw_lanes(small, [line for _, line in lines], colours, fill=False)
        rows.append([small, _painted(image, label, palette, small.shape[:2]), drawn])
    legend = [*zip(classes[1:], palette[1:], strict=True), ("void", None)]
    return compose_sheet(rows, ["image", "label", "points"], legend, title)


def _painted(
    image: np.ndarray, label: np.ndarray | None, palette: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """The image with the colours of its lanes; background is unchanged."""
    if label is None:
        return np.full((*size, 3), 245, np.uint8)
    mixed = blend(image, label, palette)
    mixed[label == 0] = image[label == 0]
    return resized(mixed, size)
