"""Legends: names of classes with their colours, as a strip below an image."""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from segkd.viz.fonts import legible
from segkd.viz.fonts import width as width_of

_SWATCH, _TEXT, _LINE, _MARGIN, _GAP = 18, 16, 32, 12, 9  # pixels at scale 1
_LETTER = 0.5  # average width of a letter relative to its height
_INK = "#1f2430"
Color = tuple[int, int, int]  # RGB
_NARROWEST = 420  # pixels; names do not fit narrower images


def with_legend(
    image: np.ndarray,
    ids: Sequence[int],
    classes: Sequence[str],
    palette: np.ndarray,
    room: int = 0,
) -> np.ndarray:
    """An image above the legend of some classes.

    Args:
        image: (H, W, 3) uint8 RGB; a narrow one is enlarged by an integer factor.
        ids: classes to show, in this order.
        classes: K names.
        palette: (K, 3) uint8 RGB.
        room: number of classes that the legend has room for at least, so that images of one size
            keep one size whatever classes they show.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    factor = math.ceil(_NARROWEST / image.shape[1])
    if factor > 1:
        image = image.repeat(factor, axis=0).repeat(factor, axis=1)
    entries = legend_entries(ids, classes, palette)
    strip = legend_strip(entries, image.shape[1])
    longest = max(map(width_of, classes), default=0) if room else 0
    missing = _layout(room, longest, image.shape[1])[1] - len(strip) if room else 0
    blank = np.full((max(0, missing), *image.shape[1:]), 255, np.uint8)
    return np.vstack([image, strip, blank])


def legend_entries(
    ids: Sequence[int], classes: Sequence[str], palette: np.ndarray
) -> tuple[tuple[str, Color], ...]:
    """Names and colours of some classes, from the palette (K, 3) uint8 RGB."""
    colors = [(int(red), int(green), int(blue)) for red, green, blue in palette[list(ids)]]
    return tuple(zip([classes[k] for k in ids], colors, strict=True))


@lru_cache(maxsize=64)
def legend_strip(entries: tuple[tuple[str, Color], ...], width: int) -> np.ndarray:
    """The legend alone, (height, width, 3) uint8 RGB; cached, so the caller must not change it.

    Args:
        entries: name and RGB colour of each class.
        width: in pixels; text grows with it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scale, swatch, line, margin = _lengths(width)
    longest = max((width_of(name) for name, _ in entries), default=0)
    per_line, height, cell = _layout(len(entries), longest, width)
    figure = Figure((width / 100, height / 100), dpi=100, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    corners = []
    for number in range(len(entries)):
        row, column = divmod(number, per_line)
        corners.append((margin + row * line, round(margin + column * cell)))
    for (name, _), (top, left) in zip(entries, corners, strict=True):
        x, y = left + swatch + scale * _GAP, top + swatch / 2
        points = 0.72 * scale * _TEXT
        figure.text(x / width, 1 - y / height, name, size=points, color=_INK, va="center_baseline")
    legible(figure)
    canvas.draw()
    strip = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    for (_, color), (top, left) in zip(entries, corners, strict=True):
        square = strip[top : top + swatch, left : left + swatch]
        square[:] = np.array(color) // 2
        square[1:-1, 1:-1] = color
    return strip


def _lengths(width: int) -> tuple[float, int, int, int]:
    """Scale of the text, and sizes of swatch, line and margin in pixels."""
    scale = min(max(width / 900, 0.75), 2.5)
    return scale, round(scale * _SWATCH), round(scale * _LINE), round(scale * _MARGIN)


def _layout(count: int, longest: float, width: int) -> tuple[int, int, float]:
    """Classes per line, height of the strip, and width per class in pixels."""
    scale, swatch, line, margin = _lengths(width)
    cell = swatch + scale * (3 * _GAP + _LETTER * _TEXT * longest)
    per_line = max(1, int((width - 2 * margin) // cell))
    height = 2 * margin + max(1, math.ceil(count / per_line)) * line - (line - swatch)
    return per_line, height, cell
