"""Lane points under scaling, cropping, rotation, flipping and distortion of their image.

Whole coordinates are pixel centres, as in the annotations. Rows of NaN stay NaN.
"""

from collections.abc import Callable, Sequence

import numpy as np

from segkd.data.lane_masks import Slots

_NEWTON = 12  # steps


def moved(lanes: Slots, x: tuple[float, float], y: tuple[float, float]) -> Slots:
    """Lanes (n, 2) by slot under x -> x[0] x + x[1], and y likewise."""
    factor, offset = np.array([x, y], np.float64).T
    return tuple(_point(lane, lambda points: points * factor + offset) for lane in lanes)


def swapped(label: np.ndarray | None, lanes: Slots, width: int) -> tuple[np.ndarray | None, Slots]:
    """Lanes of the mirror image, and its class map with exchanged ids.

    Left and right are exchanged: the last slot becomes the first.

    Args:
        label: (H, W), already mirrored, or None.
        lanes: points (n, 2) by slot, not yet mirrored.
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
    """Rotates a sample about its centre, counter-clockwise as displayed, at the same size.

    The corners become padding, with the ignore index in the label: as background they would teach
    that lanes end there.

    Args:
        image: (H, W, 3) uint8.
        label: (H, W) integers, or None.
        inside: (H, W) bool, False on padding.
        lanes: points (n, 2) by slot, or None.
        degrees: of the rotation.
        fills: colour and label of the padding.

    Returns:
        Image, label, ``inside`` and lanes after the rotation.
    """
    import cv2

    height, width = inside.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)

    def warp(array: np.ndarray, method: int, fill: Sequence[float]) -> np.ndarray:
        return cv2.warpAffine(array, matrix, (width, height), flags=method, borderValue=fill)

    colour, void = fills
    image = warp(image, cv2.INTER_LINEAR, colour)
    if label is not None:
        exact = label if label.dtype == np.uint8 else label.astype(np.float32)
        label = warp(exact, cv2.INTER_NEAREST, (void,)).astype(label.dtype)
    inside = warp(inside.astype(np.uint8), cv2.INTER_NEAREST, (0,)).astype(bool)
    image[~inside] = colour  # interpolation mixed it with the image along the border
    if lanes is not None:
        lanes = tuple(
            _point(lane, lambda points: points @ matrix[:, :2].T + matrix[:, 2]) for lane in lanes
        )
    return image, label, inside, lanes


def where_shown(points: np.ndarray, map_x: np.ndarray, map_y: np.ndarray) -> np.ndarray:
    """Positions of points of an image after a distortion that is given by maps.

    Newton's method from the nearest of evenly spaced pixels. Beyond the border the map continues as
    a shift. For content that appears twice one position is returned; for content that does not
    appear, the position of the nearest content.

    Args:
        points: (n, 2), x and y in the image.
        map_x, map_y: (H, W): pixel (x, y) of the distorted image shows the image at
            (map_x[y, x], map_y[y, x]), as for OpenCV's ``remap``.

    Returns:
        (n, 2) float64, x and y in the distorted image.
    """
    points = points.astype(np.float64)
    maps = np.stack([map_x, map_y], axis=-1).astype(np.float64)
    step = max(4, max(maps.shape) // 64)
    rows, columns = np.mgrid[: maps.shape[0] : step, : maps.shape[1] : step].reshape(2, -1)
    apart = np.square(maps[rows, columns][None] - points[:, None]).sum(axis=2)
    nearest, shown = apart.argmin(axis=1), np.sqrt(apart.min(axis=1)) < 2 * step
    place = np.stack([columns[nearest], rows[nearest]], axis=1).astype(np.float64)
    best, error = place, np.sqrt(apart.min(axis=1))
    for _ in range(_NEWTON):
        here, *slopes = (_sampled(maps, place + shift) for shift in ((0, 0), (0.5, 0), (0, 0.5)))
        missing = points - here
        better = np.linalg.norm(missing, axis=1) < error
        best = np.where(better[:, None], place, best)
        error = np.where(better, np.linalg.norm(missing, axis=1), error)
        (a, c), (b, d) = (2 * (slope - here).T for slope in slopes)
        size = a * d - b * c
        flat = np.abs(size) < 0.05  # singular: treat the map as a shift
        a, d, size = (np.where(flat, 1, own) for own in (a, d, size))
        b, c = (np.where(flat, 0, own) for own in (b, c))
        leap = np.stack([d * missing.T[0] - b * missing.T[1], a * missing.T[1] - c * missing.T[0]])
        place = place + np.clip(leap / size, -step, step).T
    for index in np.flatnonzero(shown & (error > 1)):  # in a fold: search all pixels
        apart = np.square(maps - points[index]).sum(axis=2)
        if apart.min() < error[index] ** 2:
            best[index] = np.unravel_index(apart.argmin(), apart.shape)[::-1]
    return best


def _sampled(maps: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(n, 2) values of maps (H, W, 2) at places (n, 2), x and y: bilinear, outside a shift."""
    last = np.array(maps.shape[1::-1]) - 1
    inside = places.clip(0, last)
    low = np.minimum(inside.astype(np.intp), np.maximum(last - 1, 0))
    (x, y), (right, down) = low.T, np.minimum(low + 1, last).T
    across, along = (inside - low).T[:, :, None]
    upper = maps[y, x] * (1 - across) + maps[y, right] * across
    lower = maps[down, x] * (1 - across) + maps[down, right] * across
    return upper * (1 - along) + lower * along + places - inside


def _point(lane: np.ndarray | None, move: Callable[[np.ndarray], np.ndarray]) -> np.ndarray | None:
    """Points (n, 2) of a slot after ``move``; None stays None."""
    return None if lane is None else move(lane.astype(np.float64)).astype(np.float32)
