"""The F1 of CurveLanes.

Xu et al., CurveLane-NAS: Unifying Lane-Sensitive Architecture Search and Adaptive Point Blending,
ECCV 2020, arXiv 2007.12147. As in the authors' program (``lane_metric.py`` of Huawei's vega, used
by CondLaneNet and others): lanes are scaled to 224x224 pixels, interpolated by a natural cubic
spline with a point per pixel of length, painted 5 pixels wide, and matched one to one by their
IoU; above 0.5 is a hit. Consecutive equal points, with which that program fails, count once.
"""

from collections.abc import Sequence

import numpy as np

from segkd.metrics.drawn_lanes import hits
from segkd.metrics.parametric_splines import at, distinct, natural

SIDE = 224  # height and width of the image that lanes are painted on
WIDTH = 5
_MOST = 20_000  # points of a piece, which else has one per pixel; far beyond any image


def evaluate_image(
    annotated: Sequence[np.ndarray],
    predicted: Sequence[np.ndarray],
    size: tuple[int, int],
    thresholds: Sequence[float] = (0.5,),
) -> np.ndarray:
    """TP, FP and FN of an image at each threshold: (T, 3) int64.

    Args:
        annotated, predicted: lanes (n, 2) each, x and y in pixels of the image; empty ones do not
            count.
        size: (height, width) of the image.
        thresholds: of the IoU, exclusive.
    """
    first, second = (
        [path(lane, size) for lane in own if len(lane)] for own in (annotated, predicted)
    )
    return hits(first, second, (SIDE, SIDE), WIDTH, thresholds)


def path(lane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A lane (n, 2) at 224x224, with a point per pixel of length: (m, 2)."""
    points = distinct(lane) * SIDE / np.array(size[::-1])
    if len(points) < 2:
        return points
    bends, length = natural(points)
    steps = [np.arange(0, h, max(1.0, h / _MOST)) for h in length]
    piece = np.repeat(np.arange(len(length)), [len(t) for t in steps])
    found = at(points, bends, length, piece, np.concatenate(steps))
    return np.concatenate([found, points[-1:]])
