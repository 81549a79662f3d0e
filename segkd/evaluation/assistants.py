"""The plot of teacher assistants: the student's score against the size of what it learned from."""

import csv
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segkd.evaluation.plots import (
    ACCENT,
    BASELINE,
    FAINT,
    GRID,
    INK,
    TEACHER,
    figure,
    named_legend,
    save,
)
from segkd.evaluation.results import ComparisonRow
from segkd.evaluation.table import nan_to_none
from segkd.files import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Lesson:
    """Equal students that learned from one network.

    Attributes:
        name: of the student's run.
        teacher: name of the network that it learned from: a run, or an entry of ``teachers:``.
        parameters: of that network.
        teacher_scores: of that network, in [0, 1], one per seed.
        scores: of the student, likewise.
        assistant: whether that network learned from a teacher itself.
    """

    name: str
    teacher: str
    parameters: int
    teacher_scores: Sequence[float]
    scores: Sequence[float]
    assistant: bool = False

    @property
    def mean(self) -> float:
        """The student's mean score over seeds."""
        return statistics.fmean(self.scores)


def assistants_plot(
    lessons: Sequence[Lesson],
    path: Path,
    *,
    title: str = "",
    baseline: ComparisonRow | None = None,
    score_name: str = "mIoU",
) -> None:
    """Score of each student, with the parameters of what it learned from on a logarithmic axis.

    Assistants are diamonds, teachers that learned from labels only are squares. Error bars are
    one standard deviation over seeds; the student baseline is a dashed line.

    Args:
        lessons: with finite scores; at least one.
        path: of the plot.
        title: may be empty.
        baseline: the student that learned from labels only.
        score_name: of the vertical axis.
    """
    drawing, axes = figure(7.6, 4.2, title)
    draw_lessons(axes, lessons, baseline=baseline, score_name=score_name)
    save(drawing, path)


def draw_lessons(
    axes: "Axes", lessons: Sequence[Lesson], *, baseline: ComparisonRow | None, score_name: str
) -> None:
    """The content of ``assistants_plot``, with its arguments, on the axes of any figure."""
    axes.grid(axis="y", color=GRID, lw=0.8)
    kinds = {True: (ACCENT, "D", "from an assistant"), False: (TEACHER, "s", "from a teacher")}
    marks: dict[str, Any] = {}
    for one in lessons:
        values = [100 * value for value in one.scores]
        spread = statistics.stdev(values) if len(values) > 1 else None
        color, marker, label = kinds[one.assistant]
        mark = axes.errorbar(
            one.parameters / 1e6,
            100 * one.mean,
            yerr=spread,
            color=color,
            marker=marker,
            ms=7,
            mec="white",
            capsize=4,
            ls="",
        )
        marks.setdefault(label, mark)
        _name(axes, one, [other for other in lessons if other.parameters == one.parameters])
    if baseline is not None and math.isfinite(baseline.mean):
        level, label = 100 * baseline.mean, f"{baseline.name}, labels only"
        marks[label] = axes.axhline(level, color=BASELINE, lw=1.2, ls=(0, (4, 3)), zorder=1)
    _sizes(axes, [one.parameters / 1e6 for one in lessons])
    axes.margins(x=0.15, y=0.25)
    axes.set_xlabel("million parameters of the network that the student learned from", color=FAINT)
    axes.set_ylabel(f"{score_name} of the student in %", color=FAINT)
    named = [(mark, name) for name, mark in marks.items()]
    named_legend(axes, named, loc="best", frameon=False, labelcolor=FAINT, fontsize=8.5)


def _name(axes: "Axes", one: Lesson, column: Sequence[Lesson]) -> None:
    """The run's name near its mark: beside it, or above or below if it ends its column."""
    means = sorted(other.mean for other in column)
    beside = len(one.scores) > 1 or one.mean not in (means[0], means[-1])
    below = one.mean == means[0] < means[-1]
    axes.annotate(
        one.name,
        (one.parameters / 1e6, 100 * one.mean),
        (9, -3) if beside else (0, -17) if below else (0, 9),
        textcoords="offset points",
        color=INK,
        size=9,
        ha="left" if beside else "center",
    )


def _sizes(axes: "Axes", sizes: Sequence[float]) -> None:
    """A logarithmic axis with the sizes as ticks, as far as there is room for their numbers."""
    axes.set_xscale("log")
    axes.minorticks_off()
    ticks: list[float] = []
    for size in sorted(set(sizes)):
        if not ticks or size > 1.15 * ticks[-1]:
            ticks.append(size)
    axes.set_xticks(ticks, [f"{size:.2f}" for size in ticks])


def write_lessons(lessons: Sequence[Lesson], path: Path) -> None:
    """The numbers of the plot as CSV; several seeds are separated by blanks."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "learned_from", "parameters", "teacher_scores", "scores"])
    for one in lessons:
        cells = (
            " ".join("" if nan_to_none(value) is None else repr(value) for value in values)
            for values in (one.teacher_scores, one.scores)
        )
        writer.writerow([one.name, one.teacher, one.parameters, *cells])
    write_text(path, text.getvalue())
