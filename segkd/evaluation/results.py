"""Tables of results: IoU per class, and the comparison of the runs of a recipe."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segkd.evaluation.comparison_row import NO_GAIN, ComparisonRow, Gain, gain_over
from segkd.evaluation.evaluator import Result
from segkd.evaluation.table import NONE, TextTable, nan_to_none, percent, points, spread
from segkd.files import write_text
from segkd.metrics.boundary import mean_boundary_iou
from segkd.texts import json_text

__all__ = [
    "NONE",
    "ComparisonRow",
    "class_table",
    "comparison_table",
    "peer_rows",
    "score_name",
    "write_table",
]


def peer_rows(
    run: str, summaries: Sequence[Mapping[str, Any]], score_name: str, seeds: Sequence[int]
) -> list[ComparisonRow]:
    """A row per network that learned beside the student of a run; their time is in the run's row.

    Args:
        run: its name.
        summaries: contents of its summary.json files, one per seed.
        score_name: name of the scores.
        seeds: of the summaries.
    """
    rows = []
    for name, facts in (summaries[0].get("peers", {}) if summaries else {}).items():
        found = [summary["peers"][name]["score"] for summary in summaries]
        own = [math.nan if score is None else score for score in found]
        rows.append(
            ComparisonRow(
                f"{run}: {name}",
                own,
                facts["parameters"],
                facts["flops"],
                score_name=score_name,
                seeds=seeds,
            )
        )
    return rows


def comparison_table(
    rows: Sequence[ComparisonRow], *, title: str = "", baseline: str | None = None
) -> TextTable:
    """The table of ``write_table``, without writing it."""
    student, teacher = _find(rows, "baseline", baseline), _find(rows, "teacher")
    cells, notes = [], _notes(rows, student, teacher)
    matched = any(row.matched for row in rows)
    gains = [_gain(row, student, teacher) for row in rows]
    scores = _with_spread([(percent(row.mean), row.std) for row in rows])
    gained = _with_spread([(points(gain.mean), gain.std) for gain in gains])
    for row, score, gain, above in zip(rows, scores, gains, gained, strict=True):
        cells.append(
            [
                row.name,
                score,
                above,
                NONE if gain.closed is None else f"{100 * gain.closed:z.0f} %",
                _scaled(row.parameters, 1e6, 2),
                _scaled(row.flops, 1e9, 1),
                _scaled(row.seconds_per_step, 1, 3),
                *([_scaled(row.steps, 1, 0), _scaled(row.training_seconds, 1, 1)] * matched),
                _scaled(row.peak_memory, 2**30, 2),
            ]
        )
    header = ["run", f"{score_name(rows)} %", "gain", "gap closed", "params M", "GFLOPs", "s/step"]
    header += [*(["steps", "train s"] * matched), "peak GiB"]
    return TextTable(header, cells, title, notes, strong=_best(rows))


def write_table(
    rows: Sequence[ComparisonRow], folder: Path, *, title: str = "", baseline: str | None = None
) -> TextTable:
    """Writes table.txt, table.md, table.csv and table.json, each atomically.

    Args:
        rows: in the order of the table.
        folder: created if necessary.
        title: above the table.
        baseline: name of the student baseline; default: the row with that role.

    Returns:
        The table, for printing with ``rich``.
    """
    table = comparison_table(rows, title=title, baseline=baseline)
    student, teacher = _find(rows, "baseline", baseline), _find(rows, "teacher")
    records = []
    for row in rows:
        gain = _gain(row, student, teacher)
        shares = {"gain_std": gain.std, "gap_closed": gain.closed}
        records.append(row.to_dict() | {"gain": nan_to_none(gain.mean)} | shares)
    write_text(folder / "table.txt", table.text())
    write_text(folder / "table.md", table.markdown())
    write_text(folder / "table.csv", _csv(records))
    facts = {"title": title, "rows": records, "notes": list(table.notes)}
    write_text(folder / "table.json", json_text(facts, indent=2) + "\n")
    return table


def score_name(rows: Sequence[ComparisonRow]) -> str:
    """The name of the rows' scores, e.g. mIoU."""
    return rows[0].score_name if rows else ComparisonRow.score_name


def class_table(results: Mapping[str, Result], title: str = "") -> TextTable:
    """IoU per class in %, one column per result; absent classes are not part of the mean.

    Args:
        results: by column title, e.g. ``{"IoU %": result}``; all with the same classes.
        title: above the table.
    """
    found = list(results.values())
    pixels = found[0].matrix.sum(1).double()
    shares = (pixels / pixels.sum()).tolist()
    scores = [result.iou for result in found]
    edges = {
        name: (result.boundary_iou, mean_boundary_iou(result.boundary))
        for name, result in results.items()
        if result.boundary is not None
    }
    scores += [by_class for by_class, _ in edges.values()]
    rows = [
        [name, percent(share), *(percent(score[name], "absent") for score in scores)]
        for name, share in zip(found[0].classes, shares, strict=True)
    ]
    means = [result.miou for result in found] + [mean for _, mean in edges.values()]
    rows.append(["mean IoU", "", *map(percent, means)])
    notes = [f"{found[0].images} images"]
    if found[0].skipped:
        notes[0] += f", {found[0].skipped} skipped (unreadable or without labelled pixels)"
    for name, result in results.items():
        where = f"{name}: " if len(results) > 1 else ""
        notes.append(
            f"{where}pixel accuracy {percent(result.pixel_accuracy)} %, "
            f"mean class accuracy {percent(result.mean_accuracy)} %"
        )
        if result.absent:
            absent = ", ".join(result.absent)
            notes.append(
                f"{where}absent, neither labelled nor predicted, not in the mean: {absent}"
            )
        if result.unlabelled:
            predicted = ", ".join(result.unlabelled)
            notes.append(
                f"{where}predicted, but nowhere labelled: {predicted}. Mean IoU without: "
                f"{percent(result.labelled_miou)}"
            )
    header = ["class", "pixels %", *results, *(f"boundary {name}" for name in edges)]
    return TextTable(header, rows, title, notes, footer=True)


def _find(
    rows: Sequence[ComparisonRow], role: str, name: str | None = None
) -> ComparisonRow | None:
    found = [row for row in rows if (row.name == name if name else row.role == role)]
    return found[0] if found else None


def _gain(
    row: ComparisonRow, baseline: ComparisonRow | None, teacher: ComparisonRow | None
) -> Gain:
    """Gain over the student baseline, which itself and the teacher have none."""
    if baseline is None or row in (baseline, teacher):
        return NO_GAIN
    return gain_over(row, baseline, teacher)


def _best(rows: Sequence[ComparisonRow]) -> frozenset[int]:
    """Indices of the best students, which may include the baseline; several if they tie."""
    students = [n for n, row in enumerate(rows) if row.role != "teacher"]
    scored = {n: rows[n].mean for n in students if math.isfinite(rows[n].mean)}
    if len(scored) < 2:  # nothing to compare with
        return frozenset()
    return frozenset(n for n, mean in scored.items() if mean == max(scored.values()))


def _notes(
    rows: Sequence[ComparisonRow], baseline: ComparisonRow | None, teacher: ComparisonRow | None
) -> list[str]:
    name = score_name(rows)
    seeds = sorted({len(row.scores) for row in rows if row is not teacher})
    notes = []
    if seeds and seeds[-1] > 1:
        number = " or ".join(map(str, seeds))
        notes.append(f"{name}: mean ± sample standard deviation over {number} seeds.")
    elif baseline is not None:
        notes.append(f"{name}: one seed only; differences between runs may be chance.")
    if teacher is not None and not math.isfinite(teacher.mean):
        teacher = None  # it was not scored
    if baseline is not None:
        closed = "" if teacher is None else " Gap closed: gain / (teacher - baseline)."
        each = ", seed by seed" if seeds and seeds[-1] > 1 else ""
        notes.append(
            f"Gain: {name} points above the student baseline '{baseline.name}'{each}.{closed}"
        )
        if teacher is not None and not teacher.mean > baseline.mean:
            notes.append(
                f"The teacher '{teacher.name}' is not better than '{baseline.name}', so there is "
                f"no gap to close ({NONE})."
            )
    notes.append("GFLOPs: one image, a multiply-add counted as two. s/step, peak GiB: training.")
    if any(row.matched for row in rows):
        notes.append(
            "Equal seconds: the steps of each run were chosen by a measurement before it. train s: "
            "what its training took, without evaluations."
        )
    return notes


def _csv(records: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    lists = ("seeds", "scores")
    columns = [name for name in records[0] if name not in lists] if records else []
    writer = csv.DictWriter(text, [*columns, *lists], lineterminator="\n")
    writer.writeheader()
    for record in records:
        scores = " ".join("" if value is None else repr(value) for value in record["scores"])
        seeds = " ".join(map(str, record["seeds"]))
        writer.writerow(record | {"seeds": seeds, "scores": scores})
    return text.getvalue()


def _with_spread(cells: Sequence[tuple[str, float | None]]) -> list[str]:
    """Means of a column, with the deviations that there are; blanks keep the others aligned."""
    blank = " " * len(spread(0.0)) if any(std is not None for _, std in cells) else ""
    return [mean + (spread(std) or blank) for mean, std in cells]


def _scaled(value: float | None, unit: float, digits: int) -> str:
    return NONE if value is None or not math.isfinite(value) else f"{value / unit:.{digits}f}"
