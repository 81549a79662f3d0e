"""Plots of results: score per run, IoU per class; .png, .svg or .pdf by the ending of the file."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segkd.evaluation.evaluator import Result
from segkd.evaluation.results import ComparisonRow, score_name
from segkd.evaluation.table import percent, spread
from segkd.files import write_atomic
from segkd.viz.fonts import legible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GRID = "#1f2430", "#6b7280", "#e5e7eb"
ACCENT, TEACHER, BASELINE = "#0072b2", "#d55e00", "#7a8190"  # Okabe and Ito's, and a grey
_OTHERS = ("#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255", "#332288", "#b0a000")
# Distinct by shape as well as by colour.
_SERIES = (
    (BASELINE, "o"),
    (ACCENT, "D"),
    (TEACHER, "s"),
    ("#009e73", "^"),
    ("#cc79a7", "v"),
    ("#e69f00", "P"),
)


def run_colors(names: Sequence[str], roles: Mapping[str, str]) -> dict[str, str]:
    """A colour for each run, the same in all plots and charts.

    Args:
        names: of the runs, in any order.
        roles: by name, "teacher" or "baseline".
    """
    fixed = {"teacher": TEACHER, "baseline": BASELINE}
    others = sorted(name for name in names if roles.get(name) not in fixed)
    own = dict(zip(others, (ACCENT, *_OTHERS * (1 + len(others) // len(_OTHERS))), strict=False))
    return {name: fixed.get(roles.get(name, ""), own.get(name, BASELINE)) for name in names}


def line_style(number: int) -> tuple[str, str]:
    """Colour and marker of the n-th line of a plot."""
    return _SERIES[number % len(_SERIES)]


def comparison_plot(rows: Sequence[ComparisonRow], path: Path, *, title: str = "") -> None:
    """Score of each run: mean, ± one standard deviation, and single seeds as dots below.

    Teacher and student baseline are vertical lines; seconds per step, the cost of a gain, are on
    the right. The axis is scaled for the students: a teacher far from them is an arrow at its end
    with its score.

    Args:
        rows: as for the table, from top to bottom.
        path: of the plot.
        title: may be empty.
    """
    shown = [row for row in rows if math.isfinite(row.mean)]
    colors = run_colors([row.name for row in rows], {row.name: row.role for row in rows})
    low, high = comparison_limits(shown)
    drawing, axes = figure(8.2, 1.35 + 0.42 * len(shown), title)
    for place, row in enumerate(shown):
        color = colors[row.name]
        beyond = not low <= 100 * row.mean <= high
        if beyond:
            _arrow(axes, place, low if 100 * row.mean < low else high, low, color)
            _remarks(axes, place, row)
            continue
        if row.role:
            axes.axvline(100 * row.mean, color=color, lw=1, ls=(0, (4, 3)), alpha=0.7, zorder=1)
        if row.std is not None:
            axes.errorbar(
                100 * row.mean, place, xerr=100 * row.std, color=color, lw=1.8, capsize=4, zorder=2
            )
            seeds = [100 * value for value in row.scores]
            below = [place + 0.24] * len(seeds)
            axes.scatter(seeds, below, s=15, color=color, alpha=0.55, lw=0, zorder=3)
        marker = {"teacher": "s", "baseline": "o"}.get(row.role, "D")
        axes.scatter(
            100 * row.mean, place, s=62, color=color, marker=marker, ec="white", lw=1, zorder=4
        )
        _remarks(axes, place, row)
    _rows(axes, [row.name for row in shown])
    for label, row in zip(axes.get_yticklabels(), shown, strict=True):
        label.set_color({"teacher": TEACHER, "baseline": FAINT}.get(row.role, INK))
    axes.set_xlabel(f"{score_name(rows)} in %", color=FAINT)
    if shown:
        axes.set_xlim(low, high)
    save(drawing, path)


def comparison_limits(rows: Sequence[ComparisonRow]) -> tuple[float, float]:
    """Limits of the axis in %: a margin around the students, at least two points wide.

    A teacher is within the limits if that does not more than double the axis.
    """
    own = [row for row in rows if row.role != "teacher"] or list(rows)
    values = _drawn(own)
    if not values:
        return 0.0, 100.0
    low, high = _around(values)
    wide = _around(_drawn(rows))
    return wide if wide[1] - wide[0] <= 2 * (high - low) else (low, high)


def _drawn(rows: Sequence[ComparisonRow]) -> list[float]:
    """Scores of seeds, and ends of the error bars, in %."""
    ends = [row.mean + sign * row.std for row in rows if row.std is not None for sign in (-1, 1)]
    scores = [value for row in rows for value in row.scores]
    return [100 * value for value in (*scores, *ends) if math.isfinite(value)]


def _around(values: Sequence[float]) -> tuple[float, float]:
    middle, half = (min(values) + max(values)) / 2, (max(values) - min(values)) / 2
    half = max(1.15 * half, 1.0)
    return middle - half, middle + half


def _arrow(axes: "Axes", place: int, end: float, low: float, color: str) -> None:
    """Marks a score beyond an end of the axis."""
    marker = "<" if end == low else ">"
    axes.scatter(end, place, s=70, color=color, marker=marker, lw=0, zorder=4, clip_on=False)


def per_class_plot(results: Mapping[str, Result], path: Path, *, title: str = "") -> None:
    """IoU of each class, one mark per network, with a line over their range.

    Args:
        results: by name, e.g. ``{"baseline": …, "distilled": …}``; all with the same classes.
        path: of the plot.
        title: may be empty.
    """
    names = list(results)
    scores = [result.iou for result in results.values()]
    classes = list(scores[0])
    drawing, axes = figure(7.6, 1.7 + 0.3 * len(classes), title)
    for place, name in enumerate(classes):
        values = [100 * score[name] for score in scores if math.isfinite(score[name])]
        if values:
            axes.plot([min(values), max(values)], [place, place], color="#c3c8d0", lw=3, zorder=2)
        else:
            axes.text(1, place, "absent", color=FAINT, style="italic", size=8.5, va="center")
    marks = []
    for number, (name, score) in enumerate(zip(names, scores, strict=True)):
        color, marker = line_style(number)
        values = [100 * score[key] for key in classes]
        label = f"{name} ({100 * results[name].miou:.2f})"
        places = range(len(classes))
        mark = axes.scatter(
            values, places, s=48, color=color, marker=marker, ec="white", lw=0.8, zorder=3
        )
        marks.append((mark, label))
    _rows(axes, classes)
    axes.set_xlim(0, 100)
    axes.set_xlabel("IoU in % (mean in brackets)", color=FAINT)
    options = {"ncols": 3, "frameon": False, "labelcolor": INK, "handletextpad": 0.3}
    named_legend(drawing, marks, loc="outside lower center", **options)
    save(drawing, path)


def named_legend(owner: "Figure | Axes", marks: Sequence[tuple[Any, str]], **options: Any) -> None:
    """A legend of all marks; matplotlib leaves out those whose names begin with ``_``.

    Args:
        owner: figure or axes that gets the legend.
        marks: what is drawn, and its name.
        options: of ``legend``.
    """
    legend = owner.legend([mark for mark, _ in marks], ["."] * len(marks), **options)
    for text, (_, name) in zip(legend.get_texts(), marks, strict=True):
        text.set_text(name)


def figure(width: float, height: float, title: str) -> "tuple[Figure, Axes]":
    """A figure without pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.14)
    drawing = Figure((width, height), dpi=160, facecolor="white", layout=layout)
    FigureCanvasAgg(drawing)
    axes = drawing.add_subplot()
    if title:
        axes.set_title(title, loc="left", size=12, weight="bold", color=INK, pad=12)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.grid(axis="x", color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=FAINT)
    return drawing, axes


def _rows(axes: "Axes", names: Sequence[str]) -> None:
    """Names on the left, from top to bottom."""
    axes.set_yticks(range(len(names)), names, color=INK)
    axes.set_ylim(len(names) - 0.4, -0.6)


def _remarks(axes: "Axes", place: int, row: ComparisonRow) -> None:
    """Score and seconds per step, to the right of the axes."""
    texts = [(14, "left", INK, percent(row.mean) + spread(row.std))]
    if row.seconds_per_step is not None:
        texts.append((158, "right", FAINT, f"{row.seconds_per_step:.3f} s/step"))
    for points, side, color, text in texts:
        axes.annotate(
            text,
            (1, place),
            xytext=(points, 0),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            color=color,
            size=9,
            ha=side,
            va="center",
        )


def save(drawing: "Figure", path: Path) -> None:
    """Writes a figure in the format of the file's ending."""
    data = io.BytesIO()
    legible(drawing)
    drawing.savefig(data, format=path.suffix.removeprefix(".") or "png")
    write_atomic(path, lambda file: file.write(data.getvalue()))
