"""Annotated images of any format, and what a conversion leaves behind.

Coordinates are taken over as they are: pixels, x before y.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from segkd.data.lane_base import lane_classes
from segkd.data.lane_masks import Slots, arranged, cleaned, flagged
from segkd.data.reading import header_size
from segkd.errors import DataError

MOST_SLOTS = 12
_WIDEST = 64  # slots in which lanes are arranged before their number is known


@dataclass(frozen=True)
class Line:
    """A polyline of a lane.

    Attributes:
        points: (n, 2) float64, x and y; n is 2 or more.
        label: the annotator's, or the name of a slot; empty: unknown.
    """

    points: np.ndarray
    label: str = ""


@dataclass(frozen=True)
class Annotated:
    """An image and its lanes.

    Attributes:
        image: its file, which may be missing.
        entry: its path below the root of the set, with slashes.
        size: (height, width).
        lines: its lanes.
        split: ``train``, ``val``, ``test`` or another name; empty: unknown.
        categories: names of what it shows, e.g. ``night``.
    """

    image: Path
    entry: str
    size: tuple[int, int]
    lines: tuple[Line, ...]
    split: str = ""
    categories: tuple[str, ...] = ()


@dataclass
class Left:
    """What a conversion could not carry over: how often, and where first."""

    found: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, what: str, where: object, count: int = 1) -> None:
        """Counts ``what``, a plural noun, at a file."""
        number, first = self.found.get(what, (0, str(where)))
        self.found[what] = number + count, first

    def lines(self) -> Iterator[str]:
        """One line of text per kind."""
        for what, (number, first) in self.found.items():
            yield f"{number} {what} (first: {first})"


class Labels:
    """Which labelled lines are lanes, and the labels that were seen.

    Args:
        wanted: labels, each alone or several with commas between them; empty: all lines are lanes.
    """

    def __init__(self, wanted: Sequence[str] = ()) -> None:
        self._given = {text: _parts(text) for text in wanted}
        # A label may itself contain a comma, so the whole text counts as well.
        self._wanted = {label for text, parts in self._given.items() for label in (text, *parts)}
        self._seen: Counter[str] = Counter()

    def accept(self, label: str) -> bool:
        """Whether a line with this label is a lane."""
        self._seen[label] += 1
        return not self._given or label in self._wanted

    def require_seen(self, source: Path) -> None:
        """Raises DataError for a wanted label that no line of the source has."""
        for text, parts in self._given.items():
            absent = [label for label in parts if label not in self._seen]
            if text in self._seen or not absent:
                continue
            seen = [f"'{one}' ({n})" if one else f"none ({n})" for one, n in self._seen.items()]
            listing = f"Labels are: {', '.join(sorted(seen))}" if seen else "There are no lines"
            raise DataError(f"{source}: --labels: no line is labelled '{absent[0]}'. {listing}")


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def image_size(image: Path, told: tuple[int, int] | None, where: Path) -> tuple[int, int]:
    """(height, width) of an image, from its file if that exists.

    Args:
        image: the file.
        told: what its annotation says, or None.
        where: the annotation, for messages.

    Raises:
        DataError: the file has another size than told; or no file, and nothing is told.
    """
    if image.is_file():
        size = header_size(image)
        if told not in (None, size):
            raise DataError(
                f"{where}: annotates an image of {told[0]}x{told[1]}, but {image} is "
                f"{size[0]}x{size[1]}. Annotate this image, or put back the one that was annotated"
            )
        return size
    if told is None:
        raise DataError(
            f"{where}: there is no image {image}, whose size is needed. Put the images where the "
            "annotation names them"
        )
    return told


def slot_labels(
    lines: Sequence[np.ndarray],
    size: tuple[int, int],
    flags: Sequence[int] = (),
    left: int | None = None,
) -> list[str]:
    """The name of each line's slot: by its position relative to the car, or by a list's flags.

    Args:
        lines: points (n, 2) each.
        size: (height, width) of the image.
        flags: existence by slot of a list of CULane, or empty.
        left: of these slots, those left of the car; None: half.

    Returns:
        Names as of ``lane_classes``; ``lane`` for lines without a slot.
    """
    drawn = [line for line in lines if len(cleaned(line)) >= 2]
    slots: Slots = arranged(drawn, size, 4, pair_is_ego=True)
    border = None
    if flags and sum(flags) == len(drawn):
        slots, border = flagged(drawn, flags, size), left
    elif len(drawn) > sum(slot is not None for slot in slots):
        slots = arranged(drawn, size, MOST_SLOTS)
    names = lane_classes(len(slots), border)[1:]
    own = [(name, lane) for name, lane in zip(names, slots, strict=True) if lane is not None]
    found = []
    for line in map(cleaned, lines):
        match = next((one for one in own if np.array_equal(one[1], line)), None)
        found.append("lane" if match is None else match[0])
        own = [one for one in own if one is not match]
    return found


def positions(lines: Sequence[Line], size: tuple[int, int]) -> tuple[list[int | None], bool]:
    """Each line's position relative to the car: …, −1 left of it, 0 right of it, 1, ….

    It follows from the labels if all of them are names of slots (``left 1``, ``right-right``, …)
    and from left to right in the image, else from the geometry.

    Args:
        lines: of an image.
        size: its (height, width).

    Returns:
        Positions, None for lines of one point; and whether labels contradict each other.
    """
    drawn = [cleaned(line.points) for line in lines]
    whole = [index for index, line in enumerate(drawn) if len(line) >= 2]
    slots = arranged([drawn[i] for i in whole], size, _WIDEST, pair_is_ego=True)
    found: list[int | None] = [None] * len(lines)
    left = set(whole)
    for place, lane in enumerate(slots):
        same = next((i for i in left if lane is not None and np.array_equal(drawn[i], lane)), None)
        if same is not None:
            found[same] = place - _WIDEST // 2
            left.discard(same)
    told = [_OFFSETS.get(lines[index].label) for index in whole]
    offsets = [offset for offset in told if offset is not None]
    if not whole or len(offsets) < len(told):
        return found, False
    order = sorted(range(len(whole)), key=lambda k: found[whole[k]] or 0)
    ranked = [offsets[k] for k in order]
    if sorted(set(ranked)) != ranked:  # not ascending, or one twice
        return found, True
    for index, offset in zip(whole, offsets, strict=True):
        found[index] = offset
    return found, False


def slots_needed(offsets: Sequence[int | None]) -> int:
    """The even number of slots, 4 or more, that lines at these positions need."""
    sides = [-offset if offset < 0 else offset + 1 for offset in offsets if offset is not None]
    return max(4, 2 * max(sides, default=0))


def _offsets() -> dict[str, int]:
    names = {name: place - 2 for place, name in enumerate(lane_classes(4)[1:])}
    for number in range(MOST_SLOTS):
        names |= {f"left {number + 1}": -number - 1, f"right {number + 1}": number}
    return names


_OFFSETS = _offsets()
