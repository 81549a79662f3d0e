"""Tables of lane results: official F1 per category, accuracy, FP and FN, or IoU."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from segkd.evaluation.lane_result import CulaneResult, LaneResult
from segkd.evaluation.table import TextTable, nan_to_none, percent
from segkd.metrics.culane import Counts
from segkd.metrics.culane_thresholds import TOTAL

_RATIOS = ("precision", "recall", "f1")


def lane_table(result: LaneResult, title: str = "") -> TextTable:
    """One row per category and the total for CULane, else one row of scores.

    Ratios are in %; undefined ones (crossroads have no annotated lanes) are shown as a dash.
    """
    notes = [f"{result.images} images"]
    if result.skipped:
        notes[0] += f", {result.skipped} skipped (unreadable)"
    if isinstance(result, CulaneResult):
        header = ["category", "images", "TP", "FP", "FN", "precision %", "recall %"]
        header += [result.thresholds.title(), *result.thresholds.titles()]
        rows = [
            _row(name, images, counts)
            + [percent(f1) for f1 in result.thresholds.ratios(_key(name))]
            for name, (images, counts) in _counts(result).items()
        ]
        return TextTable(header, rows, title, notes, footer=len(rows) > 1)
    numbers = {key.removeprefix("val/"): value for key, value in result.scalars().items()}
    shares = {"accuracy", "iou"}
    header = [f"{name} %" if name in shares else name.upper() for name in numbers]
    cells = [
        f"{100 * value:.2f}" if name in shares else f"{value:.4f}"
        for name, value in numbers.items()
    ]
    return TextTable(header, [cells], title, notes)


def category_table(runs: Mapping[str, Sequence[Mapping[str, Any]]], title: str = "") -> TextTable:
    """F1 per category in %, one row per run; for categories without lanes the false positives.

    Args:
        runs: by name the summaries of a run, one per seed, all with ``categories``. Counts are
            summed over seeds before F1 is computed.
        title: above the table.
    """
    added = {name: _added(summaries) for name, summaries in runs.items()}
    annotated: dict[str, int] = {}
    for name, counts in (pair for found in added.values() for pair in found.items()):
        annotated[name] = annotated.get(name, 0) + counts.tp + counts.fn
    header = ["run", *(name if lanes else f"{name} (FP)" for name, lanes in annotated.items())]
    rows = []
    for run, found in added.items():
        summed = {name: found.get(name, Counts()) for name in annotated}
        shown = [
            percent(one.to_dict()["f1"]) if annotated[name] else str(one.fp)
            for name, one in summed.items()
        ]
        rows.append([run, *shown])
    notes = ["F1 in %; FP: lanes found where there are none, over all seeds."]
    return TextTable(header, rows, title, notes)


def lane_csv(result: LaneResult) -> str:
    """The numbers of ``lane_table`` as CSV, unrounded; undefined ones are empty."""
    text = io.StringIO()
    writer = csv.writer(text)
    if not isinstance(result, CulaneResult):
        numbers = result.scalars()
        writer.writerow([key.removeprefix("val/") for key in numbers])
        writer.writerow(numbers.values())
        return text.getvalue()
    further = [title.removesuffix(" %").lower() for title in result.thresholds.titles()]
    writer.writerow(["category", "images", "tp", "fp", "fn", *_RATIOS, *further])
    for name, (images, counts) in _counts(result).items():
        more = map(nan_to_none, result.thresholds.ratios(_key(name)))
        writer.writerow([name, images, *counts.to_dict().values(), *more])
    return text.getvalue()


def _counts(result: CulaneResult) -> dict[str, tuple[int, Counts]]:
    return result.categories | {"total": (result.images, result.total)}


def _key(row: str) -> str:
    """Where ``Thresholds`` has the counts of a row."""
    return TOTAL if row == "total" else row


def _added(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Counts]:
    """Counts by category, over seeds."""
    added: dict[str, Counts] = {}
    for summary in summaries:
        for name, facts in summary["categories"].items():
            counts = Counts(facts["tp"], facts["fp"], facts["fn"])
            added[name] = added.get(name, Counts()) + counts
    return added


def _row(name: str, images: int, counts: Counts) -> list[str]:
    plain = counts.to_dict()
    shares = [percent(plain[key]) for key in _RATIOS]
    return [name, str(images), str(counts.tp), str(counts.fp), str(counts.fn), *shares]
