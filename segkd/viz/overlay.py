"""Label maps over their images, and sheets that show networks side by side."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from segkd.data.palette import VOID, colorize, distinct
from segkd.viz.fonts import legible
from segkd.viz.fonts import width as width_of

# Of two networks: only the first is right, only the second, both are wrong.
_VERDICTS = np.array([(0, 158, 115), (213, 94, 0), (150, 150, 150)], np.uint8)
INK, FAINT = "#1f2430", "#6b7280"
TILE = 440  # width of the images on a sheet
_GUTTER, _MARGIN = 8, 24  # pixels of the sheet
_TITLE, _HEADER, _SWATCH, _LINE = 48, 27, 20, 36


def blend(
    image: ArrayLike, label: ArrayLike, palette: ArrayLike, strength: float = 0.6
) -> np.ndarray:
    """Class colours over an image; void shows the darkened image under diagonal stripes.

    Args:
        image: (h, w, 3) uint8 RGB; resized to the size of the label.
        label: (H, W) class ids; ids outside the palette are void.
        palette: (K, 3) uint8 RGB.
        strength: opacity of the colours, 0 to 1.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    label = np.asarray(label)
    image = resized(np.asarray(image), label.shape).astype(np.float32)
    mixed = image + strength * (colorize(label, palette) - image)
    void = (label < 0) | (label >= len(np.asarray(palette)))
    if void.any():
        mixed[void] = _striped(image)[void]
    return mixed.round().astype(np.uint8)


def comparison_sheet(
    images: Sequence[ArrayLike],
    labels: Sequence[ArrayLike | None],
    predictions: Mapping[str, Sequence[ArrayLike]],
    palette: ArrayLike,
    classes: Sequence[str],
    *,
    strength: float = 0.6,
    title: str = "",
    compared: tuple[str, str] | None = None,
) -> np.ndarray:
    """One row per image: the image, its label, and the prediction of each network.

    Args:
        images: (H, W, 3) uint8 RGB each; sizes may differ.
        labels: (H, W) class ids each, or None.
        predictions: label maps per image by column title, from left to right; further lines of a
            title are set smaller, e.g. ``"teacher\\nmIoU 78.3"``.
        palette: (K, 3) uint8 RGB.
        classes: K names; the legend below shows those that occur.
        strength: opacity of the class colours, 0 to 1.
        title: above everything; may be empty.
        compared: titles of two columns, a student and its reference: one more column shows where
            only one of them is right.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    palette = distinct(palette)
    columns: dict[str, Sequence[ArrayLike | None]] = {}
    if any(label is not None for label in labels):
        columns["label"] = labels
    columns |= predictions
    rows, seen = [], np.zeros(len(classes) + 1, bool)
    for number, image in enumerate(map(np.asarray, images)):
        size = max(1, round(image.shape[0] * TILE / image.shape[1])), TILE
        tiles = [resized(image, size)]
        for maps in columns.values():
            label = maps[number]
            tiles.append(_tile(image, label, palette, strength, size))
            if label is not None:
                _note(seen, np.asarray(label))
        if compared is not None:
            tiles.append(
                _compared(image, labels[number], predictions, compared, number, size, len(classes))
            )
        rows.append(tiles)
    legend = [(name, palette[k]) for k, name in enumerate(classes) if seen[k]]
    if seen[-1]:
        legend.append(("void", None))
    titles = ["image", *columns]
    if compared is not None:
        titles.append("disagreement")
        first, second = (name.partition("\n")[0] for name in compared)
        words = (f"only {first} right", f"only {second} right", "both wrong")
        legend += zip(words, _VERDICTS, strict=True)
    return compose_sheet(rows, titles, legend, title)


def disagreement(
    image: np.ndarray,
    label: np.ndarray,
    student: np.ndarray,
    reference: np.ndarray,
    valid: np.ndarray,
) -> np.ndarray:
    """Shows where only one of two networks is right, over the dimmed grey image.

    Args:
        image: (H, W, 3) uint8 RGB.
        label, student, reference: (H, W) class ids.
        valid: (H, W) bool, False at void pixels, which are not coloured.

    Returns:
        (H, W, 3) uint8 RGB: green where the student alone is right, orange where the reference
        alone is, light grey where both are wrong.
    """
    grey = image.astype(np.float32).mean(2, keepdims=True) * 0.35 + 20
    canvas = np.repeat(grey, 3, axis=2)
    right, other = student == label, reference == label
    for where, color in (
        (valid & right & ~other, _VERDICTS[0]),
        (valid & ~right & other, _VERDICTS[1]),
        (valid & ~right & ~other, _VERDICTS[2]),
    ):
        canvas[where] = 0.2 * canvas[where] + 0.8 * color.astype(np.float32)
    return canvas.round().astype(np.uint8)


def _tile(
    image: np.ndarray,
    label: ArrayLike | None,
    palette: np.ndarray,
    strength: float,
    size: tuple[int, int],
) -> np.ndarray:
    """An overlay of tile size: small maps keep sharp edges, large ones are averaged."""
    if label is None:
        return np.full((*size, 3), 245, np.uint8)
    label = np.asarray(label)
    if label.shape[0] < size[0]:
        rows, columns = (
            np.arange(target) * length // target
            for target, length in zip(size, label.shape, strict=True)
        )
        label = label[rows][:, columns]
    return resized(blend(image, label, palette, strength), size)


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes an image (H, W, 3) uint8 to ``size`` (height, width)."""
    import cv2

    if image.shape[:2] == tuple(size):
        return image
    kind = cv2.INTER_AREA if size[0] < image.shape[0] else cv2.INTER_CUBIC
    return cv2.resize(image, size[::-1], interpolation=kind)


def _striped(image: np.ndarray) -> np.ndarray:
    """The dimmed grey image under diagonal stripes in proportion to its width."""
    height, width = image.shape[:2]
    period = max(4, round(width / 36))
    stripes = np.add.outer(np.arange(height), np.arange(width)) % period < period / 2
    tone = np.where(stripes, VOID[0] + 25.0, VOID[0] - 60.0)[..., None]
    return np.broadcast_to(0.3 * image.mean(2, keepdims=True) + 0.7 * tone, image.shape)


def _compared(
    image: np.ndarray,
    label: ArrayLike | None,
    predictions: Mapping[str, Sequence[ArrayLike]],
    compared: tuple[str, str],
    number: int,
    size: tuple[int, int],
    num_classes: int,
) -> np.ndarray:
    """A tile of the column "disagreement"; blank without a label."""
    if label is None:
        return np.full((*size, 3), 245, np.uint8)
    label = np.asarray(label)
    student, reference = (np.asarray(predictions[name][number]) for name in compared)
    valid = (label >= 0) & (label < num_classes)
    drawn = disagreement(resized(image, label.shape), label, student, reference, valid)
    return resized(drawn, size)


def _note(seen: np.ndarray, label: np.ndarray) -> None:
    """Marks the classes that occur, and void in the last element."""
    ids = np.unique(label)
    known = ids[(ids >= 0) & (ids < len(seen) - 1)]
    seen[known] = True
    seen[-1] |= len(known) < len(ids)


def compose_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    legend: Sequence[tuple[str, np.ndarray | None]],
    title: str,
) -> np.ndarray:
    """Arranges tiles on white, unscaled, with title, column titles and legend.

    Args:
        rows: (height, ``TILE``, 3) uint8 RGB tiles, one per column and of one height per row.
        titles: of the columns; further lines are set smaller.
        legend: names and colours; None stands for void.
        title: above everything; may be empty.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = 2 * _MARGIN + len(titles) * (TILE + _GUTTER) - _GUTTER
    cell = _SWATCH + 40 + 11 * max((width_of(name) for name, _ in legend), default=1)
    per_line = max(1, (width - 2 * _MARGIN) // cell)
    top = _MARGIN - 8 + (_TITLE if title else 0)
    first = top + _HEADER * max(name.count("\n") + 1 for name in titles) + 6
    bottom = first + sum(len(row[0]) + _GUTTER for row in rows) + 14
    height = bottom + math.ceil(len(legend) / per_line) * _LINE + _MARGIN - 18
    figure = Figure((width / 100, height / 100), dpi=100, facecolor="white")
    canvas = FigureCanvasAgg(figure)

    def paste(x: int, y: int, tile: np.ndarray) -> None:
        figure.figimage(tile, x, height - y - len(tile), origin="upper")

    if title:
        x, y = _MARGIN / width, 1 - (_MARGIN + 18) / height
        figure.text(x, y, title, size=18, color=INK, weight="bold")
    for column, name in enumerate(titles):
        left = _MARGIN + column * (TILE + _GUTTER)
        for number, line in enumerate(name.split("\n")):
            x, y = (left + TILE / 2) / width, 1 - (top + (number + 1) * _HEADER - 6) / height
            size, color = (13, FAINT) if number else (15, INK)
            figure.text(x, y, line, size=size, color=color, ha="center")
        upper = first
        for row in rows:
            paste(left, upper, row[column])
            upper += len(row[column]) + _GUTTER
    for number, (name, swatch) in enumerate(legend):
        left, upper = _MARGIN + number % per_line * cell, bottom + number // per_line * _LINE
        paste(left, upper, _swatch(swatch))
        x, y = (left + _SWATCH + 10) / width, 1 - (upper + _SWATCH - 4) / height
        figure.text(x, y, name, size=13, color=INK)
    legible(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _swatch(color: np.ndarray | None) -> np.ndarray:
    """A square of a class's colour, framed; striped for void."""
    square = np.empty((_SWATCH, _SWATCH, 3), np.uint8)
    square[:] = _striped(np.full(square.shape, 128.0)) if color is None else color
    frame = np.ones(square.shape[:2], bool)
    frame[1:-1, 1:-1] = False
    square[frame] //= 2
    return square
