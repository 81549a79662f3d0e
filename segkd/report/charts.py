"""Charts of a report: SVG with the colours of the page, and PNG on white for Markdown."""

import html
import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from segkd.evaluation.assistants import Lesson, draw_lessons
from segkd.evaluation.plots import FAINT, GRID, INK, named_legend
from segkd.evaluation.results import ComparisonRow
from segkd.viz.fonts import legible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

GOOD, BAD = "#009e73", "#d55e00"
_PARTS = ("#7a8190", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255")
_THEMED = {INK: "var(--ink)", FAINT: "var(--faint)", GRID: "var(--line)"}
_FONT = re.compile(r"font: ([^;']*?px) [^;]*?(?:sans-serif|monospace)(?=[;\"])")
_FAMILY = re.compile(r"font-family: [^;\"]*")
_MANY = 40  # classes above which rows are narrow


@dataclass(frozen=True)
class Chart:
    """A drawn chart.

    Attributes:
        name: unique on the page; the file name in Markdown.
        alt: text alternative.
        svg: element for HTML, with the colours of the page.
        png: bytes of the same chart on white.
        wide: must not be shrunk.
    """

    name: str
    alt: str
    svg: str
    png: bytes
    wide: bool = False


def class_bars(
    scores: Mapping[str, Mapping[str, float]],
    palette: Mapping[str, str],
    *,
    name: str,
    measure: str,
    gain_of: tuple[str, str] | None = None,
) -> Chart:
    """Bars per class and network; sorted by the gain, or else by the last network's score.

    Args:
        scores: class scores, 0 to 1, by network; NaN where a class is absent.
        palette: colour by network.
        name: name of the chart.
        measure: name of the scores, e.g. ``IoU``.
        gain_of: names of two networks; the gain of the second over the first is shown on the right.
    """
    networks = list(scores)
    classes = list(scores[networks[0]])

    def gain(key: str) -> float:
        if gain_of is None:
            return scores[networks[-1]][key]
        return scores[gain_of[1]][key] - scores[gain_of[0]][key]

    classes.sort(key=lambda key: -math.inf if math.isnan(gain(key)) else gain(key), reverse=True)
    row = 0.36 if len(classes) <= _MANY else 0.24
    figure, (axes,) = _figure(9.2, 1.1 + row * len(classes))
    height, marks = 0.78 / len(networks), []
    for number, network in enumerate(networks):
        values = [100 * np.nan_to_num(scores[network][key]) for key in classes]
        places = np.arange(len(classes)) + (number - (len(networks) - 1) / 2) * height
        bars = axes.barh(places, values, height * 0.9, color=palette[network])
        marks.append((bars, network))
    for place, key in enumerate(classes):
        value = gain(key)
        if gain_of is not None and math.isfinite(value):
            rounded = round(100 * value, 1)
            color = FAINT if not rounded else GOOD if rounded > 0 else BAD
            _beside(axes, place, f"{rounded:+.1f}" if rounded else "0.0", color)
    _class_axis(axes, classes)
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"{measure} in %", color=FAINT)
    axes.xaxis.set_label_position("top")
    axes.xaxis.tick_top()
    named_legend(figure, marks, loc="outside upper left", ncols=4, frameon=False, labelcolor=INK)
    order = "gain" if gain_of else measure
    return _chart(figure, name, f"{measure} of each class, sorted by {order}")


def curves(
    panels: Mapping[str, Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]]],
    palette: Mapping[str, str],
    *,
    name: str,
    alt: str,
    logarithmic: bool = False,
) -> Chart:
    """One panel per quantity, one line per run and seed over the steps.

    Args:
        panels: by title and run, (steps, values) of each seed, two arrays of equal length.
        palette: colour by run.
        name: name of the chart.
        alt: text alternative.
        logarithmic: use a logarithmic axis for panels whose values span a wide range.
    """
    columns = min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure, all_axes = _figure(
        9.2, 0.5 + (2.3 if columns > 1 else 2.6) * lines, rows=lines, columns=columns
    )
    shown: dict[str, Line2D] = {}
    for axes, (title, runs) in zip(all_axes, panels.items(), strict=False):
        axes.set_title(title, loc="left", size=9.5, color=INK)
        axes.grid(axis="y", color=GRID, lw=0.8)
        for run, seeds in runs.items():
            for number, (steps, values) in enumerate(seeds):
                marker = "o" if len(steps) <= 12 else None
                (line,) = axes.plot(
                    steps,
                    values,
                    color=palette[run],
                    lw=1.6,
                    alpha=0.35 if number else 1,
                    marker=marker,
                    ms=3.5,
                )
                shown.setdefault(run, line)
        everything = np.concatenate([v for seeds in runs.values() for _, v in seeds])
        if logarithmic and everything.min() > 0 and everything.max() > 30 * everything.min():
            axes.set_yscale("log")
            axes.tick_params(which="minor", length=0, labelleft=False)
        axes.set_xlabel("step", color=FAINT, size=8.5)
    for axes in all_axes[len(panels) :]:
        axes.set_visible(False)
    marks = [(line, run) for run, line in shown.items()]
    named_legend(figure, marks, loc="outside upper left", ncols=4, frameon=False, labelcolor=INK)
    return _chart(figure, name, alt)


def confusion_chart(matrix: np.ndarray, classes: Sequence[str], *, name: str) -> Chart:
    """Shares of each label's pixels by prediction; with numbers if there is space.

    Args:
        matrix: (K, K) counts, rows are labels.
        classes: K names.
        name: name of the chart.
    """
    totals = matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    count = len(classes)
    cell, size = (0.36, 9) if count <= 25 else (0.155, 7.5)
    margin = 0.3 + 0.0078 * size * max(map(len, classes))
    side = count * cell
    width, height = margin + side + 0.15, margin + side + 0.2
    figure, (axes,) = _figure(width, height, layout=None)
    axes.set_position((margin / width, 0.15 / height, side / width, side / height))
    axes.grid(False)
    tint = np.empty((count, count, 4))
    tint[..., :3] = np.array([0, 114, 178]) / 255
    tint[..., 3] = np.sqrt(shares)  # makes small shares visible
    axes.imshow(tint, interpolation="nearest", aspect="auto")
    axes.set_xticks(range(count), classes, rotation=90, size=size, color=INK)
    axes.set_yticks(range(count), classes, size=size, color=INK)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("predicted", color=FAINT, size=9)
    axes.set_ylabel("label", color=FAINT, size=9)
    axes.spines["bottom"].set_visible(False)
    edges = np.arange(count + 1) - 0.5
    axes.hlines(edges, -0.5, count - 0.5, color=GRID, lw=0.5)
    axes.vlines(edges, -0.5, count - 0.5, color=GRID, lw=0.5)
    for row, column in np.argwhere(shares >= 0.005) if count <= 25 else ():
        value = shares[row, column]
        color = "#ffffff" if value > 0.45 else INK
        text = f"{100 * value:.0f}"
        axes.text(column, row, text, size=7.5, color=color, ha="center", va="center")
    alt = "Confusion matrix: share of each label's pixels that is predicted as each class"
    return _chart(figure, name, alt, wide=count > 25)


def color_key(classes: Sequence[str], palette: np.ndarray, *, name: str = "colors") -> Chart:
    """The colour of each class in overlays.

    Args:
        classes: K names.
        palette: (K, 3) uint8 RGB.
        name: name of the chart.
    """
    from matplotlib.patches import Patch

    columns = max(1, min(6, int(110 / (6 + max(map(len, classes))))))
    lines = math.ceil(len(classes) / columns)
    figure, (axes,) = _figure(9.2, 0.1 + 0.22 * lines)
    axes.set_visible(False)
    patches = [Patch(color=tuple(color / 255)) for color in np.asarray(palette, float)]
    named_legend(
        figure,
        list(zip(patches, classes, strict=True)),
        loc="upper left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0,
        ncols=columns,
        frameon=False,
        labelcolor=INK,
        fontsize=8.5,
    )
    return _chart(figure, name, "The colour of each class in the overlays")


def cost_bars(
    seconds: Mapping[str, Mapping[str, float]], parts: Sequence[str], *, name: str = "step-time"
) -> Chart:
    """Milliseconds per training step of each run, by part.

    Args:
        seconds: by run and part.
        parts: in order.
        name: name of the chart.
    """
    figure, (axes,) = _figure(9.2, 1.3 + 0.36 * len(seconds))
    for place, split in enumerate(seconds.values()):
        left = 0.0
        for number, part in enumerate(parts):
            value = 1e3 * split.get(part, 0.0)
            color = _PARTS[number % len(_PARTS)]
            label = part if place == 0 else None
            axes.barh(place, value, 0.6, left=left, color=color, label=label)
            left += value
        _beside(axes, place, f"{left:.0f} ms", FAINT)
    _class_axis(axes, list(seconds))
    axes.set_xlabel("ms per step", color=FAINT)
    figure.legend(loc="outside upper left", ncols=5, frameon=False, labelcolor=INK)
    return _chart(figure, name, "Milliseconds of a training step by part, for each run")


def assistants_chart(
    lessons: Sequence[Lesson], baseline: ComparisonRow | None, score_name: str
) -> Chart:
    """Score of equal students over the size of the network that each learned from."""
    figure, (axes,) = _figure(9.2, 4.2)
    draw_lessons(axes, lessons, baseline=baseline, score_name=score_name)
    alt = "Score of each student over the parameters of the network that it learned from"
    return _chart(figure, "assistants", alt)


def _figure(
    width: float,
    height: float,
    rows: int = 1,
    columns: int = 1,
    layout: Literal["constrained"] | None = "constrained",
) -> "tuple[Figure, list[Axes]]":
    """A figure without pyplot's global state, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), dpi=100, layout=layout)
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axes in grid:
        axes.set_facecolor("none")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(GRID)
        axes.grid(axis="x", color=GRID, lw=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, labelcolor=FAINT, labelsize=8.5)
    return figure, grid


def _class_axis(axes: "Axes", names: Sequence[str]) -> None:
    """Names from top to bottom on the left."""
    size = 9 if len(names) <= _MANY else 8
    axes.set_yticks(range(len(names)), names, color=INK, size=size)
    axes.set_ylim(len(names) - 0.4, -0.6)


def _beside(axes: "Axes", place: float, text: str, color: str) -> None:
    """Text to the right of the axes."""
    axes.annotate(
        text,
        (1, place),
        xytext=(6, 0),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        color=color,
        size=8.5,
        va="center",
        annotation_clip=False,
    )


def _chart(figure: "Figure", name: str, alt: str, wide: bool = False) -> Chart:
    import matplotlib

    png, svg = io.BytesIO(), io.BytesIO()
    undo = legible(figure)
    figure.savefig(png, format="png", facecolor="white", dpi=90 if wide else 130)
    undo()  # the browser has its own fonts
    with (
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(svg, format="svg", facecolor="none", metadata={"Date": None})
    return Chart(name, alt, _inline(svg.getvalue().decode(), name, alt), png.getvalue(), wide)


def _inline(svg: str, name: str, alt: str) -> str:
    """An SVG file as an element with unique ids, the page's font and colours, and an alt text."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for color, themed in _THEMED.items():
        svg = svg.replace(color, themed)
    svg = _FONT.sub(r"font: \1 var(--font)", svg)
    svg = _FAMILY.sub("font-family: var(--font)", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(alt)}" ', 1)
