"""Sums of the official lane scores over images and processes."""

from collections.abc import Iterable, Sequence
from typing import ClassVar
from weakref import WeakKeyDictionary

import numpy as np
import torch

from segkd.data.lane_base import LaneAnnotation, LaneDataset
from segkd.evaluation.lane_result import Bdd100kResult, CulaneResult, LaneResult, TusimpleResult
from segkd.inference.lane_decode import Found, Lanes, Size
from segkd.inference.lane_files import ABSENT
from segkd.metrics import bdd100k, curvelanes, llamas, tusimple
from segkd.metrics.culane import Drawing, Rules, draw_lanes, score_thresholds
from segkd.metrics.culane_text import batch_of_lanes
from segkd.metrics.culane_thresholds import TOTAL, Thresholds, all_thresholds, by_threshold
from segkd.runtime import Runtime

_CHUNK = 64  # images painted at a time
_WIDTH, _LANE_WIDTH = 1640, 30  # pixels of CULane's images, and of lanes painted on them

# Annotations do not change, so they are painted once for all evaluations of a run.
_painted: WeakKeyDictionary[LaneDataset, dict[tuple[Size, tuple[int, ...]], Drawing]] = (
    WeakKeyDictionary()
)


class LaneTally:
    """Sums the scores of images; ``result`` sums over processes.

    Args:
        dataset: with the annotations.
        thresholds: of the IoU, for CULane's score; the first gives the score.

    Attributes:
        outcome: the class of the result.
    """

    outcome: ClassVar[type[LaneResult]]

    def __init__(self, dataset: LaneDataset, thresholds: Sequence[float] = (0.5,)) -> None:
        self.dataset, self.shown = dataset, tuple(thresholds)
        self.images = 0

    def add(self, index: int, size: Size, found: Found) -> None:
        """Scores one image.

        Args:
            index: of the image in the dataset.
            size: (H, W) of the stored image.
            found: lanes, or for BDD100K a map (H, W) of 0 and 1.
        """
        raise NotImplementedError

    def result(self, skipped: int, runtime: Runtime) -> LaneResult:
        """The result over all processes.

        Args:
            skipped: number of unreadable images of this process.
            runtime: of the processes.
        """
        raise NotImplementedError

    def _summed(self, values: list[float], skipped: int, runtime: Runtime) -> list[float]:
        """Images, skipped images, and further values, summed over processes."""
        sums = torch.tensor([self.images, skipped, *values], dtype=torch.float64)
        return runtime.all_reduce(sums.to(runtime.device)).tolist()


class CulaneTally(LaneTally):
    """TP, FP and FN; lanes are 30 px wide on images of CULane's width, scaled for other widths."""

    outcome = CulaneResult

    def __init__(self, dataset: LaneDataset, thresholds: Sequence[float] = (0.5,)) -> None:
        super().__init__(dataset, thresholds)
        self.thresholds = all_thresholds(self.shown)
        self._pending: list[tuple[int, list[np.ndarray]]] = []
        self._size: Size = (0, 0)
        self._counts: dict[int, np.ndarray] = {}

    def add(self, index: int, size: Size, found: Found) -> None:
        """Collects one image; images are scored in chunks of one size."""
        assert isinstance(found, Lanes)
        self.add_points(index, size, found.found)

    def add_points(self, index: int, size: Size, lanes: list[np.ndarray]) -> None:
        """``add`` for lanes (n, 2) of points, e.g. of a file."""
        if self._pending and (size != self._size or len(self._pending) == _CHUNK):
            self._score()
        self._size = size
        self._pending.append((index, lanes))
        self.images += 1

    def result(self, skipped: int, runtime: Runtime) -> CulaneResult:
        """Counts over all processes, in total and by category."""
        self._score()
        names = list(self.dataset.categories)
        rows = [self._sums(self._counts)]
        rows += [self._sums(self.dataset.categories[name]) for name in names]
        images, unread, *sums = self._summed([v for row in rows for v in row], skipped, runtime)
        numbers = np.array(sums, np.int64).reshape(len(rows), -1)
        counts = [by_threshold(row[1:], self.thresholds) for row in numbers]
        first = [one[self.shown[0]] for one in counts]
        found = list(zip(numbers[:, 0].tolist(), first, strict=True))
        categories = dict(zip(names, found[1:], strict=True))
        spread = Thresholds(self.shown, dict(zip([TOTAL, *names], counts, strict=True)))
        return CulaneResult(int(images), int(unread), found[0][1], categories, spread)

    def _sums(self, members: Iterable[int]) -> list[int]:
        """Images, and TP, FP, FN at each threshold, over members that this process has scored."""
        own = [self._counts[index] for index in members if index in self._counts]
        none = np.zeros((len(self.thresholds), 3), np.int64)
        return [len(own), *sum(own, none).ravel().tolist()]

    def _score(self) -> None:
        if not self._pending:
            return
        indices = tuple(index for index, _ in self._pending)
        lanes = [found for _, found in self._pending]
        rules = Rules(self._size, max(1, round(_LANE_WIDTH * self._size[1] / _WIDTH)))
        kept = _painted.setdefault(self.dataset, {})
        key = (self._size, indices)
        if key not in kept:
            annotated = [self.dataset.annotation(index).lanes for index in indices]
            kept[key] = draw_lanes(batch_of_lanes(annotated), rules)
        predicted = draw_lanes(batch_of_lanes(lanes), rules)
        counts = score_thresholds(kept[key], predicted, self.thresholds)
        self._counts |= dict(zip(indices, counts.swapaxes(0, 1), strict=True))
        self._pending = []


class CurveLanesTally(CulaneTally):
    """TP, FP and FN of lanes on images of 224x224."""

    def _score(self) -> None:
        for index, lanes in self._pending:
            truth = self.dataset.annotation(index).lanes
            self._counts[index] = self._counted(truth, lanes)
        self._pending = []

    def _counted(self, truth: list[np.ndarray], lanes: list[np.ndarray]) -> np.ndarray:
        return curvelanes.evaluate_image(truth, lanes, self._size, self.thresholds)


class LLAMASTally(CurveLanesTally):
    """TP, FP and FN of lanes from row 300 on."""

    def _counted(self, truth: list[np.ndarray], lanes: list[np.ndarray]) -> np.ndarray:
        return llamas.evaluate_image(truth, lanes, self.thresholds)


class TusimpleTally(LaneTally):
    """Accuracy, FP and FN at the rows of each image."""

    outcome = TusimpleResult

    def __init__(self, dataset: LaneDataset, thresholds: Sequence[float] = (0.5,)) -> None:
        super().__init__(dataset, thresholds)
        self._sums = np.zeros(3)

    def add(self, index: int, size: Size, found: Found) -> None:
        """Scores one image at the rows of its annotation: ``found.x`` is (L, rows)."""
        assert isinstance(found, Lanes)
        truth = self.dataset.annotation(index)
        present = found.x[~np.isnan(found.x).all(axis=1)]
        guesses = np.where(np.isnan(present), ABSENT, present)
        self._sums += tusimple.evaluate_image(
            guesses, at_rows(truth), annotated_rows(truth).tolist()
        )
        self.images += 1

    def result(self, skipped: int, runtime: Runtime) -> TusimpleResult:
        """Means over the images of all processes."""
        images, unread, *sums = self._summed(self._sums.tolist(), skipped, runtime)
        accuracy, fp, fn = (value / max(images, 1) for value in sums)
        return TusimpleResult(int(images), int(unread), accuracy, fp, fn)


class Bdd100kTally(LaneTally):
    """Accuracy and IoU of lane pixels."""

    outcome = Bdd100kResult

    def __init__(self, dataset: LaneDataset, thresholds: Sequence[float] = (0.5,)) -> None:
        super().__init__(dataset, thresholds)
        self._sums = bdd100k.Sums()

    def add(self, index: int, size: Size, found: Found) -> None:
        """Scores one image's map of lane pixels (H, W)."""
        pixels = self.dataset.annotation(index).pixels
        assert isinstance(found, np.ndarray) and pixels is not None
        self._sums = self._sums.update(found, pixels)
        self.images += 1

    def result(self, skipped: int, runtime: Runtime) -> Bdd100kResult:
        """Means over the images of all processes."""
        sums = [self._sums.accuracy_sum, self._sums.iou_sum]
        images, unread, *sums = self._summed(sums, skipped, runtime)
        accuracy, iou = (value / max(images, 1) for value in sums)
        return Bdd100kResult(int(images), int(unread), accuracy, iou)


def annotated_rows(annotation: LaneAnnotation) -> np.ndarray:
    """(R,) y in pixels at which a TuSimple annotation has an x for each lane."""
    assert annotation.rows is not None  # every set scored like TuSimple has them
    return annotation.rows


def at_rows(annotation: LaneAnnotation) -> np.ndarray:
    """(lanes, R) x of annotated lanes at the annotation's rows, -2 where they are absent."""
    place = {float(y): number for number, y in enumerate(annotated_rows(annotation))}
    x = np.full((len(annotation.lanes), len(place)), float(ABSENT))
    for lane, points in zip(x, annotation.lanes, strict=True):
        lane[[place[float(y)] for y in points[:, 1]]] = points[:, 0]
    return x


TALLIES: dict[str, type[LaneTally]] = {
    "culane": CulaneTally,
    "tusimple": TusimpleTally,
    "bdd100k": Bdd100kTally,
    "curvelanes": CurveLanesTally,
    "llamas": LLAMASTally,
}
