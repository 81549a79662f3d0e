"""Legends: names of classes beside their colours, as a strip below a picture."""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from segkd.viz.fonts import legible
from segkd.viz.fonts import width as width_of

_SWATCH, _TEXT, _LINE, _MARGIN, _GAP = 18, 16, 32, 12, 9  # pixels at scale 1
_LETTER = 0.5  # width of a letter over its height, on average
_INK = "#1f2430"
_NARROWEST = 420  # pixels: below, names would not fit


def with_legend(
    picture: np.ndarray, ids: Sequence[int], classes: Sequence[str], palette: np.ndarray
) -> np.ndarray:
    """A picture above the legend of some classes.

    Args:
        picture: (H, W, 3) uint8 RGB; a narrow one is enlarged by a whole factor.
        ids: classes to be shown, in this order.
        classes: K names.
        palette: (K, 3) uint8 RGB.
    """
    factor = math.ceil(_NARROWEST / picture.shape[1])
    if factor > 1:
        picture = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    entries = tuple((classes[k], tuple(int(part) for part in palette[k])) for k in ids)
    return np.vstack([picture, legend_strip(entries, picture.shape[1])])


@lru_cache(maxsize=64)
def legend_strip(entries: tuple[tuple[str, tuple[int, int, int]], ...], width: int) -> np.ndarray:
    """(height, width, 3) uint8 RGB with as many lines as it takes; cached, so not to be changed.

    Args:
        entries: name and RGB colour of each class.
        width: in pixels; text grows with it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scale = min(max(width / 900, 0.75), 2.5)
    swatch, line, margin = (round(scale * length) for length in (_SWATCH, _LINE, _MARGIN))
    longest = max((width_of(name) for name, _ in entries), default=0)
    cell = swatch + scale * (3 * _GAP + _LETTER * _TEXT * longest)
    per_line = max(1, int((width - 2 * margin) // cell))
    height = 2 * margin + max(1, math.ceil(len(entries) / per_line)) * line - (line - swatch)
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
