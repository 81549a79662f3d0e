"""Checks of lane sets, in addition to those of all datasets."""

from collections.abc import Iterator

import cv2
import numpy as np

from segkd.data.base import Sample
from segkd.data.findings import Finding
from segkd.data.lane_base import LaneDataset
from segkd.data.lane_files import LaneFiles
from segkd.data.lane_masks import Slots, cleaned, parts, present

_NEAR = 8  # pixels: half the width of a painted lane
_FAR = 10  # times the longer side of the image: a wrong number, not a lane that leaves it
_MOSTLY = 0.5  # share of a lane's points outside the image that is suspicious


class LaneCheck:
    """Checks the lanes of a set, image by image.

    Args:
        dataset: the set.

    Attributes:
        exist: (L,) int64, number of images in which each slot has a lane.
    """

    def __init__(self, dataset: LaneDataset) -> None:
        self.dataset = dataset
        self.exist = np.zeros(len(dataset.classes) - 1, np.int64)
        self._without_slot = 0  # lanes that networks are not trained on
        self._without_lanes = 0

    def look(self, index: int, sample: Sample) -> list[Finding]:
        """Findings about one image.

        Args:
            index: of the image in the dataset.
            sample: as the dataset reads it.

        Raises:
            DataError: the annotation cannot be read.
        """
        if sample.label is None:
            return []
        exist = present(sample.label, len(self.exist))
        self.exist += exist
        self._without_lanes += not exist.any()
        if not isinstance(self.dataset, LaneFiles):
            return []
        where, raw = self.dataset.where(index), self.dataset.raw_lanes(index)
        findings = list(_against_flags(self.dataset.flags(index), exist, where))
        if self.dataset.has_both(index):
            findings += _against_mask(sample.label, sample.lanes or (), where)
        size = self.dataset.image_size(index)
        for number, lane in enumerate(raw, 1):
            findings += _about_lane(lane, number, size, where)
        slots = sum(lane is not None for lane in sample.lanes or ())
        if len(self.exist) > 1:
            self._without_slot += max(0, sum(len(cleaned(lane)) >= 2 for lane in raw) - slots)
        return findings

    def about_the_set(self) -> Iterator[Finding]:
        """Findings about the whole set, after all images were checked."""
        where = str(getattr(self.dataset, "root", ""))
        if self._without_slot:
            text = f"{self._without_slot} lanes have no slot: there are more of them on one side"
            repair = (
                "They are not painted; increase data.num_lanes, or set data.left_lanes, where the "
                "set allows it."
            )
            yield Finding("warning", where, text, repair)
        total = len(self.dataset)
        if self._without_lanes > total / 2:
            text = f"{self._without_lanes} of {total} images have no lane"
            yield Finding(
                "warning", where, text, "Check that annotations and images belong together."
            )
        if isinstance(self.dataset, LaneFiles):
            yield from self.dataset.problems()


def _against_flags(
    flags: tuple[int, ...] | None, exist: np.ndarray, where: str
) -> Iterator[Finding]:
    """A warning where the flags of a list differ from the lanes (L,) of the label."""
    if flags is not None and tuple(map(bool, flags)) != tuple(exist.tolist()):
        given, seen = (" ".join(str(int(flag)) for flag in row) for row in (flags, exist))
        text = f"the list says that lanes {given} exist, the mask shows {seen}"
        repair = "Correct the flags or the annotation; training follows the mask."
        yield Finding("warning", where, text, repair)


def _against_mask(label: np.ndarray, lanes: Slots, where: str) -> Iterator[Finding]:
    """Lanes that a stored mask does not show, and lanes of the mask without a line.

    Slots are not compared, since masks may number lanes differently.
    """
    height, width = label.shape
    is_lane = np.asarray(label > 0, np.uint8)
    near = cv2.dilate(is_lane, np.ones((2 * _NEAR + 1,) * 2, np.uint8))
    covered: set[int] = set()
    absent = []
    for number, lane in enumerate(lanes, 1):
        points = np.concatenate([_dense(part) for part in parts(lane)] or [np.empty((0, 2))])
        x, y = np.rint(points).astype(int).T
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        x, y = x[inside], y[inside]
        if len(x) and near[y, x].mean() < _MOSTLY:
            absent.append(number)
        covered.update(np.unique(label[y, x]).tolist())
    seen = [slot for slot in np.unique(label).tolist() if slot > 0]
    unlined = [slot for slot in seen if slot not in covered]
    repair = "Training uses the mask, the score the lane file: correct or remove one of them."
    if absent:
        text = f"the mask shows nothing along the line of slot {', '.join(map(str, absent))}"
        yield Finding("warning", where, text, repair)
    if unlined:
        lanes_shown = ", ".join(map(str, unlined))
        text = f"the mask shows lane {lanes_shown}, but no line of the file is there"
        yield Finding("warning", where, text, repair)


def _dense(line: np.ndarray) -> np.ndarray:
    """Points (n, 2) about a pixel apart along a line (m, 2)."""
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
    wild = ~(np.isfinite(x) & np.isfinite(y))
    wild |= np.maximum(np.abs(x), np.abs(y)) > _FAR * max(size)
    if wild.any() and not outside.all():
        text = f"lane {number} has {wild.sum()} points far away from the image ({extent})"
        yield Finding("error", where, text, repair)
    elif outside.all():
        yield Finding("error", where, f"lane {number} is outside the image ({extent})", repair)
    elif outside.mean() > _MOSTLY:
        share = f"{100 * outside.mean():.0f} %"
        text = f"{share} of the points of lane {number} are outside the image ({extent})"
        yield Finding("warning", where, text, repair)
    if len(cleaned(lane)) < 2:
        text = f"lane {number} has one point"
        yield Finding("warning", where, text, "It is not painted, but the metric counts it.")
