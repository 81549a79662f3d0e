"""The CULane metric on folders of ``.lines.txt`` files, with one pass for all categories.

A missing file counts as an image without lanes, as in the official program, but is reported.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segkd.errors import DataError
from segkd.evaluation.batches import Progress
from segkd.metrics.culane import Counts, Drawing, Rules, draw_lanes, run_tasks, score_thresholds
from segkd.metrics.culane_text import Lanes, batch_of_lanes, batch_of_texts, lines_file
from segkd.metrics.culane_thresholds import TOTAL, Thresholds, all_thresholds, by_threshold

_CHUNK = 64  # images scored at a time


@dataclass(frozen=True)
class Result:
    """Scores of one set of predictions.

    Attributes:
        counts: (images, 3) TP, FP, FN in the order of the list.
        categories: images and counts of each category; empty if none were given.
        missing_annotations, missing_predictions: files that do not exist; scored as empty.
        malformed: ``file, line n`` of lines that are not pairs of numbers.
        uncategorised: number of images in no category, if there are categories.
        thresholds: counts at several thresholds; those above are at the first one.
    """

    counts: np.ndarray
    categories: dict[str, tuple[int, Counts]] = field(default_factory=dict)
    missing_annotations: list[str] = field(default_factory=list)
    missing_predictions: list[str] = field(default_factory=list)
    malformed: list[str] = field(default_factory=list)
    uncategorised: int = 0
    thresholds: Thresholds = field(default_factory=Thresholds)

    @property
    def total(self) -> Counts:
        """The sum over all images of the list, as in the official totals."""
        return _total(self.counts)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: counts, ratios (None where undefined), numbers of missing files."""
        categories = {
            name: {"images": images, **counts.to_dict(), **self.thresholds.to_dict(name)}
            for name, (images, counts) in self.categories.items()
        }
        return {
            "images": len(self.counts),
            **self.total.to_dict(),
            **self.thresholds.to_dict(),
            "categories": categories,
            "missing_annotations": len(self.missing_annotations),
            "missing_predictions": len(self.missing_predictions),
            "malformed_lines": len(self.malformed),
            "uncategorised": self.uncategorised,
        }


class Scorer:
    """Scores any number of prediction sets against the same annotations, read and drawn once.

    Args:
        entries: images named as in CULane's list files (``/folder/00000.jpg``).
        annotations: folder with ``folder/00000.lines.txt`` for each.
        categories: entries of each category; an image may be in several.
        rules: how lanes are drawn and compared.
        thresholds: of the IoU; the first gives the score. Default: that of the rules.
        keep: cache drawn annotations between calls, about 4 KB per image.

    Raises:
        DataError: no entries, a category without any of them, or invalid thresholds.
    """

    def __init__(
        self,
        entries: Sequence[str],
        annotations: Path,
        *,
        categories: Mapping[str, Sequence[str]] | None = None,
        rules: Rules | None = None,
        thresholds: Sequence[float] = (),
        keep: bool = True,
    ) -> None:
        if not entries:
            raise DataError("the list has no image: give one entry like /folder/00000.jpg per line")
        self.entries, self.annotations, self.keep = list(entries), Path(annotations), keep
        self.rules = rules or Rules()
        self.shown = tuple(thresholds) or (self.rules.iou_threshold,)
        self.thresholds = all_thresholds(self.shown)
        self.categories = _members(self.entries, categories or {})
        self._chunks = [
            _Annotated(self._names(begin)) for begin in range(0, len(self.entries), _CHUNK)
        ]

    def score_files(
        self, predictions: Path, *, workers: int | None = 1, progress: Progress | None = None
    ) -> Result:
        """Scores a folder of prediction files, named like the annotations.

        Args:
            predictions: the folder.
            workers: number of processes; 1: this one; None: all cores, but fewer for few images.
            progress: called with (done, total) images.

        Raises:
            DataError: none of the annotation files exists, or none of the prediction files.
        """
        tasks = [
            _Task(chunk, str(self.annotations), [str(predictions / name) for name in chunk.names])
            for chunk in self._chunks
        ]
        result = self._score(tasks, workers, progress)
        if len(result.missing_predictions) == len(self.entries):
            raise _nothing_there("prediction", result.missing_predictions[0], "--predictions")
        return result

    def score_lanes(
        self,
        predictions: Sequence[Lanes],
        *,
        workers: int | None = 1,
        progress: Progress | None = None,
    ) -> Result:
        """Scores lanes in memory.

        Args:
            predictions: for each entry, in order, arrays (n, 2) of x and y in pixels.
            workers, progress: as for ``score_files``.

        Raises:
            DataError: another number of images than entries, or no annotation file exists.
        """
        if len(predictions) != len(self.entries):
            raise DataError(
                f"{len(predictions)} predictions for {len(self.entries)} images of the list: give "
                "one list of lanes per image, empty where there is no lane"
            )
        tasks = [
            _Task(chunk, str(self.annotations), None, predictions[i * _CHUNK : (i + 1) * _CHUNK])
            for i, chunk in enumerate(self._chunks)
        ]
        return self._score(tasks, workers, progress)

    def _names(self, begin: int) -> list[str]:
        return [lines_file(entry) for entry in self.entries[begin : begin + _CHUNK]]

    def _score(
        self, tasks: list["_Task"], workers: int | None, progress: Progress | None
    ) -> Result:
        work = functools.partial(_score_chunk, scorer=(self.rules, self.thresholds), keep=self.keep)
        done, outcomes = 0, []
        for index, outcome in enumerate(run_tasks(work, tasks, workers)):
            if self.keep and self._chunks[index].drawing is None:
                self._chunks[index] = outcome.annotated
            outcomes.append(outcome)
            done += outcome.counts.shape[1]
            if progress is not None:
                progress(done, len(self.entries))
        counts = np.concatenate([outcome.counts for outcome in outcomes], axis=1)
        missing = [name for outcome in outcomes for name in outcome.annotated.missing]
        if len(missing) == len(self.entries):
            raise _nothing_there("annotation", missing[0], "--annotations")
        return Result(
            counts[0],
            {name: (len(own), _total(counts[0, own])) for name, own in self.categories.items()},
            missing,
            [name for outcome in outcomes for name in outcome.missing],
            [line for o in outcomes for line in (*o.annotated.malformed, *o.malformed)],
            self._uncategorised(),
            self._at_thresholds(counts),
        )

    def _at_thresholds(self, counts: np.ndarray) -> Thresholds:
        found = {TOTAL: by_threshold(counts, self.thresholds)}
        for name, own in self.categories.items():
            found[name] = by_threshold(counts[:, own], self.thresholds)
        return Thresholds(self.shown, found)

    def _uncategorised(self) -> int:
        if not self.categories:
            return 0
        return len(self.entries) - len(set().union(*map(set, self.categories.values())))


@dataclass(frozen=True)
class _Annotated:
    """Some images of the list; ``drawing`` is None until their annotations are drawn."""

    names: list[str]
    drawing: Drawing | None = None
    missing: list[str] = field(default_factory=list)
    malformed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Task:
    """Predictions of some images: prediction ``files``, or ``lanes`` if that is None."""

    annotated: _Annotated
    folder: str  # of the annotations
    files: Sequence[str] | None = None
    lanes: Sequence[Lanes] = ()


@dataclass(frozen=True)
class _Outcome:
    counts: np.ndarray  # (T, images, 3)
    annotated: _Annotated
    missing: list[str]
    malformed: list[str]


def _score_chunk(task: _Task, scorer: tuple[Rules, tuple[float, ...]], keep: bool) -> _Outcome:
    rules, thresholds = scorer
    annotated, drawing = task.annotated, task.annotated.drawing
    known = drawing is not None
    if drawing is None:
        files = [f"{task.folder}/{name}" for name in annotated.names]
        drawing, absent, broken = _draw_files(files, rules)
        annotated = _Annotated(annotated.names, drawing, absent, broken)
    missing: list[str] = []
    malformed: list[str] = []
    if task.files is not None:
        predicted, missing, malformed = _draw_files(task.files, rules)
    else:
        predicted = draw_lanes(batch_of_lanes(task.lanes), rules)
    counts = score_thresholds(drawing, predicted, thresholds)
    if known or not keep:  # nothing new to send back
        annotated = _Annotated([], None, annotated.missing, annotated.malformed)
    return _Outcome(counts, annotated, missing, malformed)


def _draw_files(files: Sequence[str], rules: Rules) -> tuple[Drawing, list[str], list[str]]:
    texts: list[bytes] = []
    missing: list[str] = []
    for file in files:
        text = _read(file)
        if text is None:
            missing.append(file)
        texts.append(text or b"")
    lanes, broken = batch_of_texts(texts)
    return draw_lanes(lanes, rules), missing, [f"{files[i]}, line {line}" for i, line in broken]


def _read(file: str) -> bytes | None:
    try:
        with open(file, "rb", buffering=0) as stream:
            return stream.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from None


def _members(
    entries: Sequence[str], categories: Mapping[str, Sequence[str]]
) -> dict[str, np.ndarray]:
    """Indices of the entries of each category."""
    where = {lines_file(entry): index for index, entry in enumerate(entries)}
    members: dict[str, np.ndarray] = {}
    for name, listed in categories.items():
        found = [where[file] for file in map(lines_file, listed) if file in where]
        if listed and not found:
            raise DataError(
                f"category {name}: none of its {len(listed)} images is in the list; its first is "
                f"{listed[0]}, the list begins with {entries[0]}: both must name images alike"
            )
        members[name] = np.array(found, np.int64)
    return members


def _total(counts: np.ndarray) -> Counts:
    return Counts(*counts.sum(0).tolist())


def _nothing_there(what: str, first: str, option: str) -> DataError:
    return DataError(
        f"none of the {what} files exists; the first is {first}. Check {option} and the list: a "
        "file is FOLDER/ENTRY with .lines.txt instead of the image's suffix"
    )
