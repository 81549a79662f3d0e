"""Lines from lane pixels without identity (BDD100K): one per connected component."""

import numpy as np

_STEP = 1 / 72  # of the height, between two points
_SHORTEST = 1 / 36  # of the height


def lanes_of_pixels(pixels: np.ndarray) -> list[np.ndarray]:
    """The centre line of each 8-connected component of a map (H, W); nonzero pixels are lane.

    Returns:
        Points (n, 2) float64 as x, y from bottom to top, sorted by x of the lower ends. Components
        not higher than a 36th of the image are skipped.
    """
    import cv2

    height = pixels.shape[0]
    step = max(1, round(height * _STEP))
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(
        (pixels != 0).astype(np.uint8), connectivity=8
    )
    sampled = np.arange(height - 1, -1, -step)[::-1]
    row, x = np.nonzero(labels[sampled])
    y = sampled[row]
    piece = labels[y, x]
    lanes = []
    for number in range(1, count):
        if boxes[number, cv2.CC_STAT_HEIGHT] <= height * _SHORTEST:
            continue
        own = piece == number
        rows, place = np.unique(y[own], return_inverse=True)
        if len(rows) < 2:
            continue
        middle = np.bincount(place, x[own]) / np.bincount(place)
        lanes.append(np.stack([middle, rows], axis=1)[::-1])
    return sorted(lanes, key=lambda lane: lane[0, 0])
