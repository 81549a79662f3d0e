"""The F1 of LLAMAS, by CULane's definition on images of 717x1276.

Behrendt, Soussan: Unsupervised Labeled Lane Markers Using Maps, ICCV workshops 2019. As in the
benchmark's program (``culane_metric/evaluate.py`` of karstenBehrendt/unsupervised_llamas, its
discrete IoU): predictions are interpolated by a spline at 50 points, annotations have a point per
row from row 300 on, both are painted 30 pixels wide and matched one to one by their IoU; above 0.5
is a hit. Consecutive equal points, with which that program fails, count once.
"""

from collections.abc import Sequence

import numpy as np

from segkd.metrics.drawn_lanes import hits
from segkd.metrics.parametric_splines import at, distinct, not_a_knot

SIZE = (717, 1276)  # height and width
WIDTH = 30
FIRST_ROW = 300
_SAMPLES = 50


def evaluate_image(
    annotated: Sequence[np.ndarray],
    predicted: Sequence[np.ndarray],
    thresholds: Sequence[float] = (0.5,),
) -> np.ndarray:
    """TP, FP and FN of an image at each threshold: (T, 3) int64.

    Args:
        annotated: lanes (n, 2) each, with a point per row.
        predicted: lanes (n, 2) each, x and y in pixels; those of one point do not count.
        thresholds: of the IoU, exclusive.
    """
    whole = [lane for lane in map(distinct, predicted) if len(lane) >= 2]
    return hits(annotated, [path(lane) for lane in whole], SIZE, WIDTH, thresholds)


def path(lane: np.ndarray) -> np.ndarray:
    """50 points (50, 2) of the spline through a lane (n, 2), n of 2 or more different points."""
    bends, length = not_a_knot(lane)
    way = np.append(0.0, length.cumsum())
    place = np.linspace(0, way[-1], _SAMPLES)
    piece = np.searchsorted(way, place, side="right").clip(1, len(length)) - 1
    return at(lane, bends, length, piece, place - way[piece])
