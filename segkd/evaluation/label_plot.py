"""The plot of few labels: scores against the number of labelled training images."""

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segkd.evaluation.plots import FAINT, GRID, TEACHER, figure, line_style, named_legend, save
from segkd.evaluation.results import ComparisonRow
from segkd.files import write_text

_STYLES = (0, 1, 3, 4, 5)  # the third is a teacher's


@dataclass(frozen=True)
class LabelPoint:
    """One run of a series.

    Attributes:
        name: of the run.
        images: number of its labelled training images.
        scores: in [0, 1], one per seed; NaN if undefined.
    """

    name: str
    images: int
    scores: Sequence[float]


def labels_plot(
    series: Mapping[str, Sequence[LabelPoint]],
    path: Path,
    *,
    title: str = "",
    teacher: ComparisonRow | None = None,
    score_name: str = "mIoU",
) -> None:
    """A line for each series: mean over seeds, with one standard deviation as error bars.

    The horizontal axis grows with the square root, so that 0 is on it and small numbers are apart.

    Args:
        series: points by the name of the line, in any order.
        path: of the plot.
        title: may be empty.
        teacher: its score is a dashed line.
        score_name: of the vertical axis.
    """
    drawing, axes = figure(7.6, 4.2, title)
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.set_xscale("function", functions=(_root, np.square))
    marks: list[tuple[Any, str]] = []
    for number, (name, points) in enumerate(series.items()):
        color, marker = line_style(_STYLES[number % len(_STYLES)])
        known = sorted(
            ((p.images, [100 * s for s in p.scores if math.isfinite(s)]) for p in points),
            key=lambda point: point[0],
        )
        known = [point for point in known if point[1]]
        mark = axes.errorbar(
            [images for images, _ in known],
            [statistics.fmean(scores) for _, scores in known],
            yerr=[statistics.stdev(s) if len(s) > 1 else math.nan for _, s in known],
            color=color,
            marker=marker,
            ms=7,
            mec="white",
            lw=1.8,
            capsize=4,
            label=name,
            clip_on=False,  # a mark at 0 is on the edge
            zorder=3,
        )
        marks.append((mark, name))
    if teacher is not None and math.isfinite(teacher.mean):
        level = axes.axhline(100 * teacher.mean, color=TEACHER, lw=1.2, ls=(0, (4, 3)), zorder=1)
        marks.append((level, teacher.name))
    counts = sorted({point.images for points in series.values() for point in points})
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set_xlim(0 if counts[0] == 0 else 0.8 * counts[0], 1.06 * max(*counts, 1))
    axes.margins(y=0.15)
    axes.set_xlabel("labelled training images", color=FAINT)
    axes.set_ylabel(f"{score_name} in %", color=FAINT)
    named_legend(axes, marks, loc="best", frameon=False, labelcolor=FAINT, fontsize=8.5)
    save(drawing, path)


def write_labels(series: Mapping[str, Sequence[LabelPoint]], path: Path) -> None:
    """Writes the numbers of the plot: a line for each run, scores in [0, 1] of its seeds."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["series", "run", "labelled_images", "scores"])
    for name, points in series.items():
        for point in sorted(points, key=lambda point: point.images):
            scores = " ".join("" if math.isnan(s) else f"{s:.6f}" for s in point.scores)
            writer.writerow([name, point.name, point.images, scores])
    write_text(path, text.getvalue())


def _root(value: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(value, 0))
