"""F1 of lanes that are painted on images and matched one to one by their IoU.

The part that the scores of CurveLanes and LLAMAS share: segments between whole points as
``cv2.line`` of OpenCV 4 paints them, an assignment of the largest total IoU, and a hit where it is
above a threshold. (CULane's own program matches differently, see ``metrics.culane``.)
"""

from collections.abc import Sequence

import numpy as np

from segkd.metrics.culane_paint import thick_paths

_LIMIT = 1 << 20  # pixels; farther points are as far away


def hits(
    annotated: Sequence[np.ndarray],
    predicted: Sequence[np.ndarray],
    size: tuple[int, int],
    width: int,
    thresholds: Sequence[float],
) -> np.ndarray:
    """TP, FP and FN of an image at each threshold: (T, 3) int64.

    Args:
        annotated, predicted: paths (n, 2) each, x and y; fractions are cut off. Those of one point
            have no pixel, but count.
        size: height and width of the image they are painted on.
        width: of the lines.
        thresholds: of the IoU, exclusive.
    """
    best = matched(ious(annotated, predicted, size, width))
    tp = np.array([sum(iou > threshold for iou in best) for threshold in thresholds], np.int64)
    return np.stack([tp, len(predicted) - tp, len(annotated) - tp], 1)


def ious(
    annotated: Sequence[np.ndarray],
    predicted: Sequence[np.ndarray],
    size: tuple[int, int],
    width: int,
) -> np.ndarray:
    """IoU (annotated, predicted) of the pixels of each pair; 0 where neither has any."""
    first, second = (
        masks(lanes, size, width).reshape(len(lanes), size[0] * size[1]).astype(np.float64)
        for lanes in (annotated, predicted)
    )
    shared = first @ second.T
    union = first.sum(1)[:, None] + second.sum(1) - shared
    return shared / np.where(union > 0, union, 1)


def masks(lanes: Sequence[np.ndarray], size: tuple[int, int], width: int) -> np.ndarray:
    """The painted paths: (lanes, H, W) bool. Arguments as of ``hits``."""
    height, columns = size
    edges = np.zeros((len(lanes), height, columns + 1), np.int32)
    whole = [np.trunc(lane).clip(-_LIMIT, _LIMIT).astype(np.int64) for lane in lanes]
    owner = np.repeat(np.arange(len(lanes)), [max(len(lane) - 1, 0) for lane in lanes])
    if len(owner):
        begin = np.concatenate([lane[:-1] for lane in whole])
        end = np.concatenate([lane[1:] for lane in whole])
        lane, row, left, right = thick_paths(owner, begin, end, size, width)
        np.add.at(edges, (lane, row, left), 1)
        np.add.at(edges, (lane, row, right + 1), -1)
    return edges.cumsum(2)[:, :, :columns] > 0


def matched(values: np.ndarray) -> list[float]:
    """The values of the pairs in the assignment with the largest sum, of all rows or columns.

    Args:
        values: (n, m), from 0 on.
    """
    if not values.size:
        return []
    rows = values if values.shape[0] <= values.shape[1] else values.T
    return [float(rows[row, column]) for row, column in enumerate(_assigned(-rows))]


def _assigned(cost: np.ndarray) -> list[int]:
    """The column of each row at least total cost (n, m), n <= m: shortest augmenting paths."""
    rows, columns = cost.shape
    of_row, of_column = np.zeros(rows + 1), np.zeros(columns + 1)
    owner = np.full(columns + 1, -1)  # the row of each column; the last is where a path begins
    for row in range(rows):
        owner[columns] = row
        least = np.full(columns, np.inf)
        before = np.full(columns, columns)
        used = np.zeros(columns + 1, bool)
        at = columns
        while owner[at] >= 0:
            used[at] = True
            own = int(owner[at])
            slack = cost[own] - of_row[own] - of_column[:columns]
            closer = ~used[:columns] & (slack < least)
            least[closer], before[closer] = slack[closer], at
            free = np.where(used[:columns], np.inf, least)
            following = int(free.argmin())
            step = free[following]
            taken = np.flatnonzero(used)
            of_row[owner[taken]] += step  # each row has one column
            of_column[taken] -= step
            least[~used[:columns]] -= step
            at = following
        while at != columns:
            owner[at] = owner[before[at]]
            at = int(before[at])
    found = [0] * rows
    for column in range(columns):
        if owner[column] >= 0:
            found[int(owner[column])] = column
    return found
