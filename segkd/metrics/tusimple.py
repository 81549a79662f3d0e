"""The TuSimple metric: accuracy, FP and FN equal to the official ``lane.py``.

A lane has an x for each sampled row, negative where it is absent. A point is correct within 20 px,
measured across the lane (the tolerance in x grows with the slope); a lane is found if at least
85 % of its rows are correct, absent ones included. As in the official script, one prediction may
match two lanes, FP may be negative, one missed lane of more than four is forgiven, and an image
with too many or too slow predictions counts as missed.

Source: the TuSimple lane detection challenge, its benchmark script.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segkd.errors import DataError, shortened
from segkd.texts import is_number, json_kind, parse_json, read_lines, require_below

__all__ = ["Result", "evaluate_files", "evaluate_image"]

_PIXELS = 20.0
_FOUND = 0.85
_SLOWEST = 200  # milliseconds
_SPARE_LANES = 2
_COUNTED_LANES = 4
_ABSENT = -100.0

Lanes = Sequence[Sequence[float]] | np.ndarray


@dataclass(frozen=True)
class Result:
    """Means over the annotated images.

    Attributes:
        accuracy, fp, fn: 0 to 1 (fp may be negative).
        images: number of annotated images.
        missing_predictions: ``raw_file`` of images without a prediction, which are scored as
            predictions without lanes.
    """

    accuracy: float
    fp: float
    fn: float
    images: int
    missing_predictions: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with the number of missing predictions."""
        return {
            "images": self.images,
            "accuracy": self.accuracy,
            "fp": self.fp,
            "fn": self.fn,
            "missing_predictions": len(self.missing_predictions),
        }


def evaluate_image(
    predicted: Lanes, annotated: Lanes, h_samples: Sequence[float], run_time: float = 0.0
) -> tuple[float, float, float]:
    """Compares the lanes of one image.

    Args:
        predicted, annotated: (lanes, rows), x at each of ``h_samples``; negative: absent.
        h_samples: (rows,) y in pixels.
        run_time: of the prediction, in milliseconds.

    Returns:
        Accuracy, false positives per predicted lane, false negatives per annotated lane.

    Raises:
        DataError: a lane and ``h_samples`` differ in length, or ``h_samples`` is empty.
    """
    rows = np.asarray(h_samples, np.float64)
    guesses, truths = _array(predicted, "predicted", rows), _array(annotated, "annotated", rows)
    if run_time > _SLOWEST or len(guesses) > len(truths) + _SPARE_LANES:
        return 0.0, 0.0, 1.0
    accuracies = [_best_share(guesses, truth, rows) for truth in truths]
    found = sum(accuracy >= _FOUND for accuracy in accuracies)
    missed, summed = len(truths) - found, sum(accuracies)
    if len(truths) > _COUNTED_LANES:
        missed -= missed > 0
        summed -= min(accuracies)
    counted = max(min(len(truths), _COUNTED_LANES), 1)
    fp = (len(guesses) - found) / len(guesses) if len(guesses) else 0.0
    return float(summed / counted), float(fp), float(missed / counted)


def _best_share(guesses: np.ndarray, truth: np.ndarray, rows: np.ndarray) -> float:
    """The largest share of correct rows among the guesses."""
    if not len(guesses):
        return 0.0
    tolerance = _PIXELS * math.hypot(1.0, _slope(truth, rows))  # 20 / cos(arctan(slope))
    truth = np.where(truth < 0, _ABSENT, truth)
    guesses = np.where(guesses < 0, _ABSENT, guesses)
    right = (np.abs(guesses - truth) < tolerance).sum(1)
    return float(right.max() / len(rows))


def _slope(x: np.ndarray, rows: np.ndarray) -> float:
    """dx/dy of the least-squares line through the points that are present; 0 without two."""
    present = x >= 0
    if present.sum() < 2:
        return 0.0
    y = rows[present] - rows[present].mean()
    spread = float((y * y).sum())
    return float((y * (x[present] - x[present].mean())).sum()) / spread if spread else 0.0


def _array(lanes: Lanes, what: str, rows: np.ndarray) -> np.ndarray:
    """(lanes, rows) float64."""
    if not len(rows):
        raise DataError("h_samples is empty; expected the rows of the image, e.g. 160 to 710")
    for number, lane in enumerate(lanes, 1):
        if len(lane) != len(rows):
            raise DataError(
                f"{what} lane {number} has {len(lane)} points, but h_samples has {len(rows)}: "
                "give one x per row, -2 where the lane is absent"
            )
    return np.asarray(lanes, np.float64).reshape(-1, len(rows))


def evaluate_files(predictions: Path, annotations: Path) -> Result:
    """Scores a file of predictions in the format of the benchmark: one JSON object per line.

    Args:
        predictions: lines with ``raw_file``, ``lanes``, ``run_time`` (milliseconds).
        annotations: lines with ``raw_file``, ``lanes``, ``h_samples``.

    Raises:
        DataError: with file and line: not such an object, a missing key, a value that is not a
            finite number, a duplicate or unannotated image, lanes of a wrong length; or no image
            has a prediction.
    """
    truths = read_items(annotations, ("raw_file", "lanes", "h_samples"))
    guesses = read_items(predictions, ("raw_file", "lanes", "run_time"))
    for name, (number, _) in guesses.items():
        if name not in truths:
            raise DataError(
                f"{predictions}, line {number}: {name} is not annotated in {annotations}; predict "
                "the images of that file, named by its raw_file"
            )
    if not guesses:
        raise DataError(f"{predictions}: has no prediction; expected one JSON object per line")
    for path, items in ((annotations, truths), (predictions, guesses)):
        for number, item in items.values():
            _require_numbers(f"{path}, line {number}", item)
    rows = []
    for name, (where, truth) in truths.items():
        found = guesses.get(name)
        guess: dict[str, Any] = found[1] if found else {"lanes": [], "run_time": 0}
        try:
            row = evaluate_image(
                guess["lanes"], truth["lanes"], truth["h_samples"], guess["run_time"]
            )
        except DataError as error:
            place = f"{annotations}, line {where}"
            if found:
                place += f"; {predictions}, line {found[0]}"
            raise DataError(f"{name} ({place}): {error}") from None
        rows.append(row)
    accuracy, fp, fn = (math.fsum(column) / len(rows) for column in zip(*rows, strict=True))
    return Result(accuracy, fp, fn, len(rows), [name for name in truths if name not in guesses])


def read_items(path: Path, keys: tuple[str, ...]) -> dict[str, tuple[int, dict[str, Any]]]:
    """Line number and object of each ``raw_file`` in a file of one JSON object per line.

    Args:
        path: the file.
        keys: that each object must have.

    Raises:
        DataError: with file and line: not such an object, a missing key, or a duplicate image;
            or annotations without images.
    """
    found: dict[str, tuple[int, dict[str, Any]]] = {}
    for number, line in read_lines(path):
        item = _item(f"{path}, line {number}", line, keys)
        if item["raw_file"] in found:
            first = found[item["raw_file"]][0]
            raise DataError(
                f"{path}, line {number}: {item['raw_file']} is already in line {first}; keep one"
            )
        found[item["raw_file"]] = number, item
    if not found and "h_samples" in keys:
        raise DataError(f"{path}: has no image; expected one JSON object per line")
    return found


def _item(where: str, line: str, keys: tuple[str, ...]) -> dict[str, Any]:
    item = parse_json(line, where)
    shape = "{" + ", ".join(f'"{key}": …' for key in keys) + "}"
    if not isinstance(item, dict):
        raise DataError(f"{where}: expected an object {shape}, got {json_kind(item)}")
    for key in keys:
        if key not in item:
            raise DataError(f"{where}: the key {key} is missing; expected {shape}")
    if not isinstance(item["raw_file"], str):
        got = json_kind(item["raw_file"])
        raise DataError(f"{where}: raw_file is {got}; expected the image's path as a text")
    require_below(item["raw_file"], where)
    if "lanes" in keys and not isinstance(item["lanes"], list):
        got = json_kind(item["lanes"])
        raise DataError(f"{where}: lanes is {got}; expected a list of lists of x")
    return item


def _require_numbers(where: str, item: dict[str, Any]) -> None:
    """Raises DataError for the first value of an item that has a wrong type."""
    if not is_number(item.get("run_time", 0)):
        raise DataError(f"{where}: run_time is {_shown(item['run_time'])}; expected milliseconds")
    lists = [(f"lane {number}", lane) for number, lane in enumerate(item["lanes"], 1)]
    for what, values in [("h_samples", item.get("h_samples", [])), *lists]:
        if not isinstance(values, list):
            expected = "a list of numbers like [632, 625, -2]"
            raise DataError(f"{where}: {what} is {json_kind(values)}; expected {expected}")
        for place, value in enumerate(values, 1):
            if not is_number(value):
                found = f"value {place} of {what} is {_shown(value)}"
                raise DataError(f"{where}: {found}; expected a number, -2 where there is no lane")


def _shown(value: object) -> str:
    """A value for messages: numbers as they are, others by kind, e.g. ``null``."""
    kind = json_kind(value)
    return shortened(value) if kind == "a number" else kind
