"""Where lane points go when their image is scaled, cropped, rotated or flipped.

Whole coordinates are centres of pixels, as in the annotations. Rows of NaN stay NaN.
"""

import numpy as np

from segkd.data.lane_masks import Slots


def moved(lanes: Slots, x: tuple[float, float], y: tuple[float, float]) -> Slots:
    """Lanes under x -> x[0] x + x[1], and y alike."""
    factor, offset = np.array([x, y], np.float64).T
    return tuple(_point(lane, lambda points: points * factor + offset) for lane in lanes)


def swapped(label: np.ndarray | None, lanes: Slots, width: int) -> tuple[np.ndarray | None, Slots]:
    """Lanes of the mirror image, and the class map with the ids to match.

    Left and right change places: the last slot becomes the first.

    Args:
        label: (H, W), mirrored already.
        lanes: by slot, not yet mirrored.
        width: of the image.
    """
    mirrored = [
        _point(lane, lambda points: points * (-1, 1) + (width - 1, 0)) for lane in lanes[::-1]
    ]
    if label is not None:
        is_lane = (label >= 1) & (label <= len(lanes))
        label = np.where(is_lane, len(lanes) + 1 - label, label)
    return label, tuple(mirrored)


def turned(
    image: np.ndarray,
    label: np.ndarray | None,
    inside: np.ndarray,
    lanes: Slots | None,
    degrees: float,
    fills: tuple[tuple[int, int, int], int],
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, Slots | None]:
    """Everything rotated about the centre, anticlockwise as it is seen; the size stays.

    What comes in from beyond the border is padding: filled, outside, and void in the label. As
    background it would teach that lanes end there.

    Args:
        fills: colour and label of the padding.
    """
    import cv2

    height, width = inside.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)

    def warp(array: np.ndarray, method: int, fill) -> np.ndarray:
        return cv2.warpAffine(array, matrix, (width, height), flags=method, borderValue=fill)

    colour, void = fills
    image = warp(image, cv2.INTER_LINEAR, colour)
    if label is not None:
        exact = label if label.dtype == np.uint8 else label.astype(np.float32)
        label = warp(exact, cv2.INTER_NEAREST, void).astype(label.dtype)
    inside = warp(inside.astype(np.uint8), cv2.INTER_NEAREST, 0).astype(bool)
    image[~inside] = colour  # interpolation has mixed it with the image along the border
    if lanes is not None:
        lanes = tuple(
            _point(lane, lambda points: points @ matrix[:, :2].T + matrix[:, 2]) for lane in lanes
        )
    return image, label, inside, lanes


def _point(lane: np.ndarray | None, move) -> np.ndarray | None:
    """A slot's points (n, 2) after ``move``; None stays None."""
    return None if lane is None else move(lane.astype(np.float64)).astype(np.float32)
