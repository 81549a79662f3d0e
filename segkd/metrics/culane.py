"""The CULane metric: TP, FP and FN equal to the official C++ program, image by image.

Lanes are painted 30 pixels wide along a spline; a prediction is correct if its IoU with the lane
that it is matched to is above the threshold. The peculiarities of the official program (its
spline, rounding, thick lines and matcher, lanes of fewer than two points, undefined precision) are
reproduced in ``culane_text``, ``culane_spline``, ``culane_paint``, ``culane_spans`` and
``culane_stamps``.

Source: X. Pan et al., "Spatial As Deep: Spatial CNN for Traffic Scene Understanding", AAAI 2018,
arXiv:1712.06080, and its evaluation program.

The official matcher is Kuhn-Munkres with a tolerance, so it does not always find the best
matching: an edge counts as tight if its slack is below 0.01, and edges are tried in order. With
IoUs of 0.4984 and 0.5009 it keeps the first, which is not a hit. NaN (two lanes outside the image)
is never tight, and where only NaN is left the search ends, for all further lanes too. Published
numbers depend on this.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from segkd.cpus import available_cpus
from segkd.errors import DataError, MachineError
from segkd.metrics.culane_spans import Spans, draw, overlap
from segkd.metrics.culane_text import Batch, Lanes, batch_of_lanes, read_lanes

Task = TypeVar("Task")
Outcome = TypeVar("Outcome")
_WORTH = 32  # tasks per process that are worth starting it

TOLERANCE = 1e-2
_ENDLESS = 1e10
_LOWEST = -1e5
Matrix = Sequence[Sequence[float]]

__all__ = [
    "Counts",
    "Drawing",
    "Rules",
    "draw_lanes",
    "evaluate_image",
    "evaluate_images",
    "read_lanes",
    "score_drawings",
    "score_thresholds",
]

_LARGEST = 8192  # pixels of a side


@dataclass(frozen=True)
class Counts:
    """True positives, false positives and false negatives; ratios as in the official program."""

    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)

    @property
    def precision(self) -> float:
        """tp / (tp + fp); -1 without predictions."""
        return self.tp / (self.tp + self.fp) if self.tp + self.fp else -1.0

    @property
    def recall(self) -> float:
        """tp / (tp + fn); -1 without annotated lanes."""
        return self.tp / (self.tp + self.fn) if self.tp + self.fn else -1.0

    @property
    def f1(self) -> float:
        """2PR / (P + R), NaN if both are 0. Meaningful only if ``defined``."""
        precision, recall = self.precision, self.recall
        both = precision + recall
        return 2 * precision * recall / both if both else math.nan

    @property
    def defined(self) -> bool:
        """Whether there are lanes on both sides, so that P, R and (unless tp is 0) F1 exist."""
        return self.tp + self.fp > 0 and self.tp + self.fn > 0

    def to_dict(self) -> dict[str, float | int | None]:
        """Counts, and ratios or None where they are undefined."""
        precision, recall, f1 = self.precision, self.recall, self.f1
        return {
            "tp": self.tp,
            "fp": self.fp,
            "fn": self.fn,
            "precision": precision if precision >= 0 else None,
            "recall": recall if recall >= 0 else None,
            "f1": f1 if self.defined and f1 == f1 else None,
        }


@dataclass(frozen=True)
class Rules:
    """How lanes are painted and compared; the defaults are those of the benchmark.

    Raises:
        DataError: a value out of range.
    """

    image_size: tuple[int, int] = (590, 1640)  # height, width
    lane_width: int = 30
    iou_threshold: float = 0.5

    def __post_init__(self) -> None:
        if len(self.image_size) != 2 or not all(1 <= s <= _LARGEST for s in self.image_size):
            raise DataError(
                f"image_size is {self.image_size}; expected height and width, 1 to {_LARGEST}, "
                "e.g. (590, 1640)"
            )
        if not 1 <= self.lane_width <= 255:
            raise DataError(f"lane_width is {self.lane_width}; expected 1 to 255 pixels, e.g. 30")
        if not 0 <= self.iou_threshold < 1:
            raise DataError(f"iou_threshold is {self.iou_threshold}; expected 0 to 1, e.g. 0.5")


@dataclass(frozen=True)
class Drawing:
    """The painted lanes of several images.

    Attributes:
        spans: of all lanes.
        images: (images + 1,), the lanes of image i are images[i] up to images[i + 1].
    """

    spans: Spans
    images: np.ndarray


def evaluate_image(
    annotation: Lanes,
    prediction: Lanes,
    *,
    image_size: tuple[int, int] = (590, 1640),
    lane_width: int = 30,
    iou_threshold: float = 0.5,
) -> tuple[int, int, int]:
    """Compares the lanes of one image.

    Args:
        annotation, prediction: lanes as arrays (n, 2) of x and y in pixels; lanes of fewer than
            two points match nothing, but count. ``read_lanes`` reads them from a file.
        image_size: height and width.
        lane_width: thickness of the painted lanes in pixels.
        iou_threshold: a match needs more than this.

    Returns:
        True positives, false positives, false negatives.

    Raises:
        DataError: a lane of another shape, or options out of range.
    """
    rules = Rules(image_size, lane_width, iou_threshold)
    tp, fp, fn = evaluate_images([annotation], [prediction], rules)[0].tolist()
    return tp, fp, fn


def evaluate_images(
    annotations: Sequence[Lanes], predictions: Sequence[Lanes], rules: Rules | None = None
) -> np.ndarray:
    """``evaluate_image`` for many images, many times faster; best for a few hundred at a time.

    Args:
        annotations, predictions: per image the lanes, arrays (n, 2) of x and y in pixels.
        rules: how lanes are painted and compared; default: those of the benchmark.

    Returns:
        (images, 3) int64: TP, FP, FN of each image.

    Raises:
        DataError: different numbers of images, or a lane of another shape.
    """
    if len(annotations) != len(predictions):
        raise DataError(
            f"{len(annotations)} annotated and {len(predictions)} predicted images: give one list "
            "of lanes per image on both sides, empty where there is no lane"
        )
    rules = rules or Rules()
    annotated = draw_lanes(batch_of_lanes(annotations), rules)
    return score_drawings(annotated, draw_lanes(batch_of_lanes(predictions), rules), rules)


def draw_lanes(lanes: Batch, rules: Rules) -> Drawing:
    """Paints lanes; drawings of annotations can be reused between evaluations."""
    spans = draw(lanes.points, lanes.counts, rules.image_size, rules.lane_width)
    return Drawing(spans, lanes.images)


def score_drawings(annotated: Drawing, predicted: Drawing, rules: Rules) -> np.ndarray:
    """Compares two drawings of the same images; returns (images, 3) int64 TP, FP, FN."""
    return score_thresholds(annotated, predicted, [rules.iou_threshold])[0]


def score_thresholds(
    annotated: Drawing, predicted: Drawing, thresholds: Sequence[float]
) -> np.ndarray:
    """``score_drawings`` at several IoU thresholds: (T, images, 3) int64."""
    rows, columns = np.diff(annotated.images), np.diff(predicted.images)
    pairs = rows * columns
    image = np.repeat(np.arange(len(pairs)), pairs)
    within = np.arange(len(image)) - np.repeat(np.cumsum(pairs) - pairs, pairs)
    lane_a = annotated.images[:-1][image] + within // columns[image]
    lane_b = predicted.images[:-1][image] + within % columns[image]
    ious = _ious(annotated.spans, predicted.spans, lane_a, lane_b).tolist()
    hits, at = [], 0
    for height, width in zip(rows.tolist(), columns.tolist(), strict=True):
        begins = range(at, at + height * width, width or 1)
        at += height * width
        matrix = [ious[begin : begin + width] for begin in begins]
        best = matched_ious(matrix, min(thresholds)) if matrix else []
        hits.append([sum(iou > threshold for iou in best) for threshold in thresholds])
    tp = np.array(hits, np.int64).reshape(-1, len(thresholds)).T
    return np.stack([tp, columns - tp, rows - tp], 2)


def _ious(a: Spans, b: Spans, lane_a: np.ndarray, lane_b: np.ndarray) -> np.ndarray:
    """IoU of pairs: 0 if one has fewer than two points, NaN if both are outside the image."""
    shared = overlap(a, b, lane_a, lane_b)
    with np.errstate(invalid="ignore"):
        iou = shared / (a.area[lane_a] + b.area[lane_b] - shared)
    return np.where(a.drawn[lane_a] & b.drawn[lane_b], iou, 0.0)


def count_hits(ious: Matrix, threshold: float) -> int:
    """Number of matched pairs whose IoU is above the threshold.

    Args:
        ious: rows are annotations, columns predictions; neither is empty.
        threshold: 0 to 1.
    """
    return sum(iou > threshold for iou in matched_ious(ious, threshold))


def matched_ious(ious: Matrix, lowest: float) -> list[float]:
    """IoUs of the matched pairs; those up to ``lowest`` may be missing. See ``count_hits``."""
    rows = ious if len(ious) <= len(ious[0]) else list(zip(*ious, strict=True))
    best = _plain_matching(rows) if lowest >= TOLERANCE else None
    if best is None:
        best = [rows[u][v] for u, v in enumerate(match(rows)) if v >= 0]
    return best


def _plain_matching(rows: Matrix) -> list[float] | None:
    """The matched IoUs if each row has one tight column and no two share it, else None.

    Rows without overlap take any free column and give way to others, so they change nothing.
    """
    best: list[float] = []
    taken: set[int] = set()
    for row in rows:
        highest = max(row)
        total = sum(row)
        if total != total:
            return None
        if highest < TOLERANCE:
            continue
        tight = [v for v, iou in enumerate(row) if highest - iou < TOLERANCE]
        if len(tight) > 1 or tight[0] in taken:
            return None
        taken.add(tight[0])
        best.append(highest)
    return best


def match(weights: Matrix) -> list[int]:
    """The matched column of each row, or -1; there must not be more rows than columns."""
    return _Matching(weights).run()


class _Matching:
    def __init__(self, weights: Matrix) -> None:
        self.weights = weights
        self.row_label = [max([_LOWEST, *(w for w in row if w == w)]) for row in weights]
        self.column_label = [0.0] * len(weights[0])
        self.match_of_row = [-1] * len(weights)
        self.match_of_column = [-1] * len(weights[0])

    def run(self) -> list[int]:
        for row in range(len(self.weights)):
            while True:
                rows: set[int] = set()
                columns: set[int] = set()
                if self._augment(row, rows, columns):
                    break
                step = self._smallest_slack(rows, columns)
                if step == _ENDLESS:
                    return self.match_of_row
                for u in rows:
                    self.row_label[u] -= step
                for v in columns:
                    self.column_label[v] += step
        return self.match_of_row

    def _augment(self, u: int, rows: set[int], columns: set[int]) -> bool:
        rows.add(u)
        for v in range(len(self.column_label)):
            if v in columns or not math.fabs(self._slack(u, v)) < TOLERANCE:
                continue
            columns.add(v)
            owner = self.match_of_column[v]
            if owner == -1 or self._augment(owner, rows, columns):
                self.match_of_column[v], self.match_of_row[u] = u, v
                return True
        return False

    def _smallest_slack(self, rows: set[int], columns: set[int]) -> float:
        free = [v for v in range(len(self.column_label)) if v not in columns]
        slacks = (self._slack(u, v) for u in rows for v in free)
        return min([_ENDLESS, *(slack for slack in slacks if slack == slack)])

    def _slack(self, u: int, v: int) -> float:
        return self.row_label[u] + self.column_label[v] - self.weights[u][v]


def run_tasks(
    work: Callable[[Task], Outcome], tasks: Sequence[Task], workers: int | None
) -> Iterator[Outcome]:
    """Yields ``work(task)`` for each task, in order.

    Args:
        work: a picklable function.
        tasks: its arguments.
        workers: number of processes; 1: this one; None: all cores, but fewer for few tasks.

    Raises:
        MachineError: one of the processes was ended.
    """
    if workers is None:
        workers = min(available_cpus(), len(tasks) // _WORTH)
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield from map(work, tasks)
        return
    # A fresh interpreter: a fork would copy a process that may hold threads and a GPU.
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread)
    try:
        yield from pool.map(work, tasks)
    except BrokenProcessPool:
        raise MachineError(
            f"one of {workers} processes that score was ended, e.g. for lack of memory. Use fewer: "
            "--workers 1, in Python workers=1 (as in scripts without `if __name__ == '__main__':`)"
        ) from None
    finally:  # also if the caller stops early
        pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    import cv2

    cv2.setNumThreads(1)
