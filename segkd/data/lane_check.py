"""What a check looks for in lane sets, beside what it looks for in all."""

from collections.abc import Iterator

import cv2
import numpy as np

from segkd.data.base import Sample
from segkd.data.findings import Finding
from segkd.data.lane_base import LaneDataset
from segkd.data.lane_files import LaneFiles
from segkd.data.lane_masks import cleaned, parts, present

_NEAR = 8  # pixels: half the width of a painted lane
_MOSTLY = 0.5  # share of a lane's points beyond the image that is suspicious


class LaneCheck:
    """Gathers facts about the lanes of a set, image by image.

    Attributes:
        exist: (L,) int64, in how many images each slot has a lane.
    """

    def __init__(self, dataset: LaneDataset) -> None:
        self.dataset = dataset
        self.exist = np.zeros(len(dataset.classes) - 1, np.int64)
        self._without_slot = 0  # lanes that the network cannot learn
        self._without_lanes = 0

    def look(self, index: int, sample: Sample) -> list[Finding]:
        """What is wrong with one image. Raises DataError for annotations that cannot be read."""
        if sample.label is None:
            return []
        exist = present(sample.label, len(self.exist))
        self.exist += exist
        self._without_lanes += not exist.any()
        if not isinstance(self.dataset, LaneFiles):
            return []
        where, raw = self.dataset.where(index), self.dataset.raw_lanes(index)
        findings = list(self._flags(index, exist, where))
        if self.dataset.has_both(index):
            findings += _against_mask(sample, where)
        size = self.dataset.image_size(index)
        for number, lane in enumerate(raw, 1):
            findings += _about_lane(lane, number, size, where)
        slots = sum(lane is not None for lane in sample.lanes or ())
        if len(self.exist) > 1:
            self._without_slot += max(0, sum(len(cleaned(lane)) >= 2 for lane in raw) - slots)
        return findings

    def about_the_set(self) -> Iterator[Finding]:
        where = str(getattr(self.dataset, "root", ""))
        if self._without_slot:
            text = f"{self._without_slot} lanes have no slot: there are more of them on one side"
            repair = "They are not painted; a larger data.num_lanes, where the set has one, helps."
            yield Finding("warning", where, text, repair)
        total = len(self.dataset)
        if self._without_lanes > total / 2:
            text = f"{self._without_lanes} of {total} images show no lane"
            yield Finding(
                "warning", where, text, "Check that annotations and images belong together."
            )
        if isinstance(self.dataset, LaneFiles):
            yield from self.dataset.problems()

    def _flags(self, index: int, exist: np.ndarray, where: str) -> Iterator[Finding]:
        flags = self.dataset.flags(index)
        if flags is not None and tuple(map(bool, flags)) != tuple(exist.tolist()):
            given, seen = (" ".join(str(int(flag)) for flag in row) for row in (flags, exist))
            text = f"the list says that lanes {given} exist, the mask shows {seen}"
            repair = "Correct the flags or the annotation; training follows the mask."
            yield Finding("warning", where, text, repair)


def _against_mask(sample: Sample, where: str) -> Iterator[Finding]:
    """Lanes that a stored mask does not show, and lanes of the mask that no line goes through.

    Slots are left out: masks number their lanes by rules of their own.
    """
    height, width = sample.label.shape
    near = cv2.dilate((sample.label > 0).astype(np.uint8), np.ones((2 * _NEAR + 1,) * 2, np.uint8))
    covered: set[int] = set()
    absent = []
    for number, lane in enumerate(sample.lanes or (), 1):
        points = np.concatenate([_dense(part) for part in parts(lane)] or [np.empty((0, 2))])
        x, y = np.rint(points).astype(int).T
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        x, y = x[inside], y[inside]
        if len(x) and near[y, x].mean() < _MOSTLY:
            absent.append(number)
        covered.update(np.unique(sample.label[y, x]).tolist())
    seen = [slot for slot in np.unique(sample.label).tolist() if slot > 0]
    alone = [slot for slot in seen if slot not in covered]
    repair = "Training follows the mask, the score the lane file: correct or remove one of them."
    if absent:
        text = f"the mask shows nothing along the line of slot {', '.join(map(str, absent))}"
        yield Finding("warning", where, text, repair)
    if alone:
        text = f"the mask shows lane {', '.join(map(str, alone))}, but no line of the file is there"
        yield Finding("warning", where, text, repair)


def _dense(line: np.ndarray) -> np.ndarray:
    """Points on the way along a line, a pixel or so apart."""
    steps = np.hypot(*np.diff(line, axis=0).T)
    way = np.concatenate([[0], np.cumsum(steps)])
    at = np.linspace(0, way[-1], max(2, int(way[-1])))
    return np.stack([np.interp(at, way, axis) for axis in line.T], axis=1)


def _about_lane(
    lane: np.ndarray, number: int, size: tuple[int, int], where: str
) -> Iterator[Finding]:
    height, width = size
    if len(lane) == 0:
        text = f"lane {number} has no point (a blank line, or -2 in every row)"
        repair = "It is not painted, but the metric counts it as a lane: remove it."
        yield Finding("warning", where, text, repair)
        return
    x, y = np.asarray(lane, np.float64).T
    outside = (x < -0.5) | (x > width - 0.5) | (y < -0.5) | (y > height + 0.5)
    extent = f"x {x.min():g} to {x.max():g}, y {y.min():g} to {y.max():g}, image {height}x{width}"
    repair = "Coordinates are pixels of the stored image, x before y: correct or remove the lane."
    if outside.all():
        yield Finding("error", where, f"lane {number} lies outside of the image ({extent})", repair)
    elif outside.mean() > _MOSTLY:
        share = f"{100 * outside.mean():.0f} %"
        text = f"{share} of the points of lane {number} lie outside of the image ({extent})"
        yield Finding("warning", where, text, repair)
    if len(cleaned(lane)) < 2:
        text = f"lane {number} has one point"
        yield Finding("warning", where, text, "It is not painted, but the metric counts it.")
