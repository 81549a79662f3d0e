"""The table of scores on sets that no run has seen, beside the main one."""

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segkd.evaluation.comparison_row import deviation
from segkd.evaluation.table import TextTable, nan_to_none, percent, points, spread
from segkd.files import write_text
from segkd.texts import json_text


@dataclass(frozen=True)
class OtherRow:
    """Scores of one network on its own set and on others, one per seed, 0 to 1.

    Attributes:
        name: of the run or teacher.
        own: on the evaluation set of its training.
        others: by set.
        role: ``teacher``, ``baseline`` or empty.
    """

    name: str
    own: Sequence[float]
    others: Mapping[str, Sequence[float]] = field(default_factory=dict)
    role: str = ""

    @property
    def mean(self) -> float:
        """The mean over the other sets of their means over seeds; NaN without any."""
        return _mean([_mean(found) for found in self.others.values()])


def other_row(name: str, facts: Sequence[Mapping[str, Any]], role: str = "") -> OtherRow:
    """The row of a run.

    Args:
        name: of the run or teacher.
        facts: its summaries, one per seed; or what a summary has of a teacher.
        role: see ``OtherRow``.
    """
    sets = dict.fromkeys(key for one in facts for key in one.get("others", {}))
    others = {key: [_score(one.get("others", {}).get(key, {})) for one in facts] for key in sets}
    return OtherRow(name, [_score(one) for one in facts], others, role)


def other_table(rows: Sequence[OtherRow], *, score_name: str, title: str = "") -> TextTable:
    """Rows: networks; columns: their own set, the others, the mean of the others, the gap.

    Args:
        rows: in the order of the table.
        score_name: of the scores, e.g. mIoU.
        title: above the table.
    """
    sets = list(dict.fromkeys(key for row in rows for key in row.others))
    teacher = next((row for row in rows if row.role == "teacher"), None)
    # A mean over fewer sets does not compare with those of the other rows.
    means = {row.name: row.mean if set(row.others) == set(sets) else math.nan for row in rows}
    cells = []
    for row in rows:
        mean = means[row.name]
        gap = math.nan if teacher is None or row is teacher else means[teacher.name] - mean
        cells.append(
            [
                row.name,
                _text(row.own),
                *(_text(row.others.get(key, ())) for key in sets),
                percent(mean),
                points(gap),
            ]
        )
    students = {n: means[row.name] for n, row in enumerate(rows) if row.role != "teacher"}
    scored = {number: mean for number, mean in students.items() if math.isfinite(mean)}
    best = [n for n, mean in scored.items() if len(scored) > 1 and mean == max(scored.values())]
    about = "mean: of the other sets"
    if any(set(row.others) != set(sets) for row in rows):
        about += ", of rows that have them all"
    gap_note = "" if teacher is None else " gap: points by which the teacher's mean is higher."
    notes = [
        f"{score_name} in %; own: the evaluation set of the training; the others are only scored.",
        f"{about}.{gap_note}",
    ]
    header = ["run", "own", *sets, "mean", "gap"]
    return TextTable(header, cells, title, notes, strong=frozenset(best))


def write_other_table(
    rows: Sequence[OtherRow], folder: Path, *, score_name: str, title: str = ""
) -> TextTable | None:
    """Writes others.txt, others.md, others.csv and others.json; None if no row has other sets.

    Args:
        rows, score_name, title: as of ``other_table``.
        folder: created if necessary.
    """
    rows = [row for row in rows if row.others]
    if not rows:
        return None
    table = other_table(rows, score_name=score_name, title=title)
    sets = {name for row in rows for name in row.others}
    records = [
        {
            "name": row.name,
            "role": row.role,
            "own": nan_to_none(_mean(row.own)),
            **{f"other/{key}": nan_to_none(_mean(found)) for key, found in row.others.items()},
            "mean": nan_to_none(row.mean if row.others.keys() == sets else math.nan),
        }
        for row in rows
    ]
    write_text(folder / "others.txt", table.text())
    write_text(folder / "others.md", table.markdown())
    text = io.StringIO()
    columns = dict.fromkeys(key for record in records for key in record)
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    write_text(folder / "others.csv", text.getvalue())
    plain = [
        {
            "name": row.name,
            "role": row.role,
            "own": [nan_to_none(one) for one in row.own],
            "others": {key: [nan_to_none(one) for one in v] for key, v in row.others.items()},
        }
        for row in rows
    ]
    facts = {"title": title, "rows": plain, "notes": list(table.notes)}
    write_text(folder / "others.json", json_text(facts, indent=2) + "\n")
    return table


def _score(facts: Mapping[str, Any]) -> float:
    score = facts.get("score", facts.get("miou"))
    return math.nan if score is None else score


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def _text(values: Sequence[float]) -> str:
    return percent(_mean(values)) + spread(deviation(values))
