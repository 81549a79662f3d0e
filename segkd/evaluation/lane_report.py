"""Tables of lane results: official F1 per category, accuracy, FP and FN, or IoU."""

import csv
import io

from segkd.evaluation.lane_result import CulaneResult, LaneResult
from segkd.evaluation.table import TextTable
from segkd.metrics.culane import Counts

NONE = "–"
_RATIOS = ("precision", "recall", "f1")


def lane_table(result: LaneResult, title: str = "") -> TextTable:
    """A row per category and the total for CULane, else a row of numbers.

    Ratios are in %; where one is not defined (crossroads have no lane to be found) is a dash.
    """
    notes = [f"{result.images} images"]
    if result.skipped:
        notes[0] += f", {result.skipped} skipped (unreadable)"
    if isinstance(result, CulaneResult):
        header = ["category", "images", "TP", "FP", "FN", "precision %", "recall %", "F1 %"]
        rows = [_row(name, images, counts) for name, (images, counts) in _counts(result).items()]
        return TextTable(header, rows, title, notes, footer=len(rows) > 1)
    numbers = {key.removeprefix("val/"): value for key, value in result.scalars().items()}
    shares = {"accuracy", "iou"}
    header = [f"{name} %" if name in shares else name.upper() for name in numbers]
    cells = [
        f"{100 * value:.2f}" if name in shares else f"{value:.4f}"
        for name, value in numbers.items()
    ]
    return TextTable(header, [cells], title, notes)


def lane_csv(result: LaneResult) -> str:
    """The numbers of the table, unrounded; what is not defined is empty."""
    text = io.StringIO()
    writer = csv.writer(text)
    if not isinstance(result, CulaneResult):
        numbers = result.scalars()
        writer.writerow([key.removeprefix("val/") for key in numbers])
        writer.writerow(numbers.values())
        return text.getvalue()
    writer.writerow(["category", "images", "tp", "fp", "fn", *_RATIOS])
    for name, (images, counts) in _counts(result).items():
        plain = counts.to_dict()
        writer.writerow([name, images, *plain.values()])
    return text.getvalue()


def _counts(result: CulaneResult) -> dict[str, tuple[int, Counts]]:
    return result.categories | {"total": (result.images, result.total)}


def _row(name: str, images: int, counts: Counts) -> list[str]:
    plain = counts.to_dict()
    shares = [NONE if plain[key] is None else f"{100 * plain[key]:.2f}" for key in _RATIOS]
    return [name, str(images), str(counts.tp), str(counts.fp), str(counts.fn), *shares]
