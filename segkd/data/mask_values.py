"""What masks hold: ids or colours, how often, and palettes of indexed files."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from segkd.data.layout import Layout, Pair
from segkd.data.reading import (
    GREY,
    header_size,
    listed,
    mask_doubts,
    merged_channels,
    packed_colors,
    read_mask,
)
from segkd.errors import DataError, SegKDError

MOST_READ = 2000  # masks; of more, an evenly spaced part is read
_LARGEST_BINCOUNT = 1 << 16
_FEW = 3  # files in a message
Progress = Callable[[int, int], None]


@dataclass
class Values:
    """Values of masks, over the masks that were read.

    Attributes:
        kind: ids, or colours packed as in ``packed_colors``.
        pixels: number of pixels by value.
        masks: number of masks that have a value.
        by_mask: the values of each mask that was read.
        palette: RGB by id, of indexed files.
        of: number of all masks.
        ending: of the first mask, in lower case.
    """

    kind: Literal["ids", "colors"]
    pixels: Counter[int] = field(default_factory=Counter)
    masks: Counter[int] = field(default_factory=Counter)
    by_mask: dict[Path, frozenset[int]] = field(default_factory=dict)
    palette: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    of: int = 0

    @property
    def read(self) -> int:
        """Number of masks that were read."""
        return len(self.by_mask)

    def add(self, path: Path, values: Sequence[int], counts: Sequence[int]) -> None:
        """Adds a mask with its values, and the number of pixels of each."""
        self.pixels.update(dict(zip(values, counts, strict=True)))
        self.masks.update(values)
        self.by_mask[path] = frozenset(values)

    def share(self, value: int) -> float:
        """Share of the pixels that have a value."""
        return self.pixels[value] / max(1, self.pixels.total())


def read_values(masks: Sequence[Path], progress: Progress = lambda done, total: None) -> Values:
    """Reads masks, at most ``MOST_READ`` of them.

    Args:
        masks: their files, at least one.
        progress: called with (done, total).

    Raises:
        DataError: a mask cannot be read, is a JPEG, or some have ids and others colours.
    """
    step = max(1, -(-len(masks) // MOST_READ))
    chosen = list(masks[::step])
    _refuse_jpeg(chosen)
    ids, colors = Values("ids", of=len(masks)), Values("colors", of=len(masks))
    one_channel: set[Path] = set()
    for number, path in enumerate(chosen, start=1):
        stored = read_mask(path)
        if stored.ndim == 2:
            one_channel.add(path)
        mask = merged_channels(stored)
        if mask.ndim == 2:
            ids.add(path, *_counts(mask))
        else:
            colors.add(path, *_counts(packed_colors(mask)))
        progress(number, len(chosen))
    if not colors.by_mask:
        ids.palette = _palette(chosen[0])
        return ids
    _require_greys(ids, colors, one_channel)
    return _joined(ids, colors)


def _require_greys(ids: Values, colors: Values, one_channel: set[Path]) -> None:
    """Among colours, masks of one channel may be black, or of greys that RGB masks have as well.

    Raises:
        DataError: one has other values: ids.
    """
    greys = {0} | {value & 255 for value in colors.pixels if value == (value & 255) * GREY}
    greys |= {
        value for path, own in ids.by_mask.items() if path not in one_channel for value in own
    }
    for path, own in ids.by_mask.items():
        wrong = sorted(own - greys)
        if wrong:
            raise DataError(
                f"{next(iter(colors.by_mask))} has colours, but {path} has ids ({listed(wrong)}). "
                "Convert them to one kind, or move one kind away"
            )


def _joined(greys: Values, colors: Values) -> Values:
    """The colours of all masks, with those of masks that are all grey."""
    packed = {path: frozenset(v * GREY for v in own) for path, own in greys.by_mask.items()}
    return Values(
        "colors",
        pixels=colors.pixels + Counter({v * GREY: n for v, n in greys.pixels.items()}),
        masks=colors.masks + Counter({v * GREY: n for v, n in greys.masks.items()}),
        by_mask=packed | colors.by_mask,
        of=colors.of,
    )


def without_misfits(layout: Layout) -> list[str]:
    """Leaves out pairs whose mask has another size than the image, or that cannot be read.

    Args:
        layout: its pairs are reduced.

    Returns:
        What was left out, as lines for the user.

    Raises:
        DataError: no pair is left.
    """
    wrong: list[str] = []
    before, kept = layout.labelled, {}
    for split, pairs in layout.pairs.items():
        kept[split] = [pair for pair in pairs if not _misfit(pair, wrong)]
    if before and not any(kept.values()):
        raise DataError(
            f"none of the {before} pairs can be used: {wrong[0]}. Masks must have the size of "
            "their images: resize them (nearest neighbour), or give the images they were drawn on"
        )
    layout.pairs = {split: pairs for split, pairs in kept.items() if pairs}
    if not wrong:
        return []
    more = f"; and {len(wrong) - _FEW} more" if len(wrong) > _FEW else ""
    return [f"{len(wrong)} of {before} pairs are left out: {'; '.join(wrong[:_FEW])}{more}"]


def _misfit(pair: Pair, wrong: list[str]) -> bool:
    """Whether a pair cannot be used; says why in ``wrong``."""
    image, mask = pair
    try:
        one, other = header_size(image), header_size(mask)
    except SegKDError as error:
        wrong.append(str(error))
        return True
    if one == other:
        return False
    wrong.append(
        f"{image} is {one[0]}x{one[1]}, its mask {mask} is {other[0]}x{other[1]} (height x width)"
    )
    return True


def _refuse_jpeg(masks: Sequence[Path]) -> None:
    lossy = [path for path in masks[:: max(1, len(masks) // 8)] if mask_doubts(path)]
    if lossy:
        raise DataError(
            f"{lossy[0]}: the mask is a JPEG, whose compression changes ids and colours at every "
            "border. Write masks as PNG; for masks of black and white, with values below 128 as 0 "
            "and others as 255"
        )


def _counts(values: np.ndarray) -> tuple[list[int], list[int]]:
    if values.size and values.max() < _LARGEST_BINCOUNT:
        counts = np.bincount(values.ravel())
        there = np.flatnonzero(counts)
        return there.tolist(), counts[there].tolist()
    there, counts = np.unique(values, return_counts=True)
    return there.tolist(), counts.tolist()


def _palette(path: Path) -> dict[int, tuple[int, int, int]]:
    """The palette of an indexed file; empty for others, and for one of greys."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            flat = image.getpalette() if image.mode == "P" else None
    except Exception:  # Pillow's plug-ins raise arbitrary exceptions; the colours are optional
        return {}
    rows = [flat[start : start + 3] for start in range(0, len(flat or []), 3)] if flat else []
    colors = {value: (row[0], row[1], row[2]) for value, row in enumerate(rows) if len(row) == 3}
    return colors if any(len(set(color)) > 1 for color in colors.values()) else {}
