"""CULane: a ``.lines.txt`` beside each image, and lists with existence by slot."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from segkd.data.culane import MASKS, frames
from segkd.data.culane_lists import Listed, splits_of
from segkd.data.files import files_below
from segkd.data.lane_exchange.annotated import (
    MOST_SLOTS,
    Annotated,
    Left,
    Line,
    image_size,
    positions,
    slot_labels,
    slots_needed,
)
from segkd.data.lane_files import missing_annotation
from segkd.data.lane_masks import left_of_flags
from segkd.data.lane_writing import list_line, write_lines
from segkd.errors import DataError
from segkd.files import write_text
from segkd.metrics.culane_text import lines_file, read_categories, read_lanes

_LISTS = Path("list")


def is_culane(root: Path) -> bool:
    """Whether a folder has lists of CULane, or lane files."""
    lists = root / _LISTS
    if lists.is_dir() and any(lists.glob("*.txt")):
        return True
    return bool(files_below(root, (".lines.txt",)))


def read_culane(root: Path, left: Left) -> list[Annotated]:
    """Reads the images of all lists, or without lists all images.

    Args:
        root: of the set.
        left: gets lanes of fewer than two points.

    Raises:
        DataError: no image, a missing lane file, or with file and line what is malformed.
    """
    listed = _listed(root)
    if not listed:
        raise DataError(
            f"{root}: has neither list/*.txt nor images. Give the root of a CULane tree"
        )
    named = _categories(root)
    images = [_read(root, one, split, left, named) for split, one in listed]
    return _named_by_slot(images, [one.flags or () for _, one in listed])


def _named_by_slot(
    images: Sequence[Annotated], flags: Sequence[tuple[int, ...]]
) -> list[Annotated]:
    """Images whose lines have the names of their slots, by the flags of their lists."""
    number = max(map(len, flags), default=0)
    lanes = [[line.points for line in image.lines] for image in images]
    given = [own if len(own) == number else () for own in flags]
    sizes = [image.size for image in images]
    # Nobody says how many of the slots are left of the car, but the lanes show it.
    beside = left_of_flags(zip(lanes, given, sizes, strict=True), number // 2)
    found = []
    for image, own, points in zip(images, given, lanes, strict=True):
        labels = slot_labels(points, image.size, own, beside)
        lines = tuple(Line(*pair) for pair in zip(points, labels, strict=True))
        found.append(replace(image, lines=lines))
    return found


def _listed(root: Path) -> list[tuple[str, Listed]]:
    """Split and line of each image: of lists, or without any those that are there."""
    found = list(splits_of(root / _LISTS).values())
    return found or [("", Listed(path.as_posix(), None, None)) for path in frames(root)]


def _categories(root: Path) -> dict[str, tuple[str, ...]]:
    folder = root / _LISTS / "test_split"
    if not folder.is_dir():
        return {}
    named: dict[str, tuple[str, ...]] = {}
    for name, entries in read_categories(folder).items():
        for entry in entries:
            key = lines_file(entry)
            named[key] = (*named.get(key, ()), name)
    return named


def _read(
    root: Path, listed: Listed, split: str, left: Left, named: dict[str, tuple[str, ...]]
) -> Annotated:
    image, path = root / listed.image, root / lines_file(listed.image)
    if not path.is_file():
        raise missing_annotation(path)
    lanes = [lane.astype(np.float64) for lane in read_lanes(path, strict=True)]
    short = sum(len(lane) < 2 for lane in lanes)
    if short:
        left.add("lanes of fewer than two points", path, short)
    lanes = [lane for lane in lanes if len(lane) >= 2]
    size = image_size(image, None, path)
    lines = tuple(map(Line, lanes))
    categories = named.get(lines_file(listed.image), ())
    return Annotated(image, listed.image, size, lines, split, categories)


def write_culane(out: Path, images: Sequence[Annotated], left: Left) -> int:
    """Writes lane files, a list per split with a flag per slot, and a list per category.

    Lines are written from left to right; as many slots as all images need, 4 to 12.

    Args:
        out: the folder; the images belong at their entries below it.
        images: with splits.
        left: gets labels and lines that have no place.

    Returns:
        Number of slots, for ``data.num_lanes``.
    """
    placed = []
    for one in images:
        offsets, contradicting = positions(one.lines, one.size)
        if contradicting:
            left.add("images whose labels are not from left to right: position decides", one.entry)
        placed.append(offsets)
    number = min(MOST_SLOTS, max(map(slots_needed, placed), default=4))
    lines: dict[str, list[str]] = {}
    for one, offsets in zip(images, placed, strict=True):
        lines.setdefault(one.split, []).append(_write(out, one, offsets, number, left))
    for split, entries in lines.items():
        write_text(out / _LISTS / f"{split}_gt.txt", "".join(entries))
    _write_categories(out, images, left)
    return number


def _write(
    out: Path, one: Annotated, offsets: Sequence[int | None], number: int, left: Left
) -> str:
    """Writes an image's lane file; its line in a list."""
    order = sorted(range(len(offsets)), key=lambda k: (offsets[k] is None, offsets[k] or 0))
    write_lines(out, one.entry, [one.lines[index].points for index in order])
    flags = [False] * number
    for line, offset in zip(one.lines, offsets, strict=True):
        place = -1 if offset is None else offset + number // 2
        if 0 <= place < number:
            flags[place] = True
        else:
            left.add(
                f"lines beyond the {number} slots: in the score, but not trained on", one.entry
            )
        if line.label and not _is_slot(line.label):
            left.add(f"labels '{line.label}': CULane has no types of lanes", one.entry)
    return list_line(one.entry, MASKS, flags)


def _is_slot(label: str) -> bool:
    return label == "lane" or label.split(" ")[0].split("-")[0] in ("left", "right")


def _write_categories(out: Path, images: Sequence[Annotated], left: Left) -> None:
    """``list/test_split``: of images that are not for training."""
    names = sorted({name for one in images if one.split != "train" for name in one.categories})
    for place, name in enumerate(names):
        safe = name.replace("/", "_").replace("\\", "_")
        own = [one for one in images if name in one.categories and one.split != "train"]
        text = "".join(f"{one.entry}\n" for one in own)
        write_text(out / _LISTS / "test_split" / f"test{place}_{safe}.txt", text)
    lost = [one for one in images if one.split == "train" and one.categories]
    if lost:
        left.add(
            "training images with categories, which CULane lists for validation and test alone",
            lost[0].entry,
            len(lost),
        )
