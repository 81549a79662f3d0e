"""CULane's lane files: a lane per line, ``x y x y …``, read as the official program reads them.

A line is a lane even if it is blank. Numbers are parsed as by a C++ stream (so ``1.5.2`` is 1.5
and 0.2), reading ends at the first token that is not a number (``nan`` and ``inf`` are not), and
an x without a y is dropped. Coordinates are rounded to float32.

List files name the images, and those of each category.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segkd.errors import DataError
from segkd.texts import read_lines, require_below

_TRAIN_COLUMNS = re.compile(r"\s+/\S.*\.png(\s+[01])*$")  # of train_gt.txt: mask and existence
_NUMBERED = re.compile(r"^test\d+_")

Lanes = Sequence[np.ndarray]

_LETTERS = re.compile(rb"[_nN]")  # float() takes 1_000, nan and inf; a C++ stream does not
_NUMBER = re.compile(rb"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]*)?)")
_PLAIN = re.compile(r"(?:[\s0-9.eE+-]|nan|inf(?:inity)?)*", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class Batch:
    """Lanes of several images, end to end.

    Attributes:
        points: (points, 2) float32, x and y.
        counts: (lanes,) number of points of each lane.
        images: (images + 1,) where the lanes of image i begin (i) and end (i + 1).
    """

    points: np.ndarray
    counts: np.ndarray
    images: np.ndarray


def read_lanes(source: Path | str | bytes, *, strict: bool = False) -> list[np.ndarray]:
    """Reads the lanes of one image.

    Args:
        source: a file, or its content. A str with a line break, or of numbers only, is content.
        strict: refuse lines with a token that is not a number or with an x without a y,
            instead of reading them as the official program does.

    Returns:
        Lanes as (n, 2) float32 arrays of x and y; n may be 0 or 1.

    Raises:
        DataError: the file cannot be read; or ``strict``, with file and line.
    """
    name = "the text"
    if isinstance(source, str):
        text = "\n" in source or _PLAIN.fullmatch(source)
        source = source.encode() if text else Path(source)
    if isinstance(source, Path):
        name, source = str(source), _read(source)
    values, counts, broken = parse(source)
    if strict and broken:
        shown = source.split(b"\n")[broken[0] - 1][:60].decode(errors="replace")
        raise DataError(
            f"{name}, line {broken[0]}: {shown!r} is not pairs of numbers. A lane is a line "
            "`x y x y …`: correct the line"
        )
    with np.errstate(over="ignore"):
        points = np.array(values, np.float64).astype(np.float32).reshape(-1, 2)
    return np.split(points, np.cumsum(counts)[:-1]) if counts else []


def parse(data: bytes) -> tuple[list[float], list[int], list[int]]:
    """The numbers of a lane file; never raises.

    Returns:
        Coordinates x y x y … of all lanes, the number of points of each lane, and the lines
        (from 1) that violate the format.
    """
    values: list[float] = []
    counts: list[int] = []
    broken: list[int] = []
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    plain = not _LETTERS.search(data)
    for number, line in enumerate(lines, 1):
        lane = _plain_numbers(line) if plain else None
        if lane is None:
            lane, whole = _stream_numbers(line)
            if not whole:
                broken.append(number)
        if len(lane) % 2:
            lane.pop()
            if not broken or broken[-1] != number:
                broken.append(number)
        values += lane
        counts.append(len(lane) // 2)
    return values, counts, broken


def _plain_numbers(line: bytes) -> list[float] | None:
    try:
        lane = list(map(float, line.split()))
    except ValueError:
        return None
    return None if float("inf") in lane or -float("inf") in lane else lane


def _stream_numbers(line: bytes) -> tuple[list[float], bool]:
    """The numbers that a C++ stream reads, and whether they are the whole line."""
    lane, at = [], 0
    while match := _NUMBER.match(line, at):
        try:
            value = float(match[1])
        except ValueError:  # 1e, 1e+
            break
        if value in (float("inf"), -float("inf")):
            break
        lane.append(value)
        at = match.end()
    return lane, not line[at:].strip()


def batch_of_texts(files: Sequence[bytes]) -> tuple[Batch, list[tuple[int, int]]]:
    """Lanes of several files, and (file, line) of violations of the format."""
    values: list[float] = []
    counts: list[int] = []
    images = [0]
    broken: list[tuple[int, int]] = []
    for index, data in enumerate(files):
        numbers, lanes, lines = parse(data)
        values += numbers
        counts += lanes
        images.append(len(counts))
        broken += [(index, line) for line in lines]
    with np.errstate(over="ignore"):
        points = np.array(values, np.float64).astype(np.float32).reshape(-1, 2)
    return Batch(points, np.array(counts, np.int64), np.array(images)), broken


def batch_of_lanes(images: Sequence[Lanes]) -> Batch:
    """Lanes of several images, arrays (n, 2) each. Raises DataError for other shapes."""
    lanes = [_checked(lane) for lanes in images for lane in lanes]
    points = np.concatenate([*lanes, np.empty((0, 2), np.float32)])
    starts = np.cumsum([0, *map(len, images)])
    return Batch(points, np.array([len(lane) for lane in lanes], np.int64), starts)


def _checked(lane: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        array = np.asarray(lane, np.float32)
    if array.size == 0:
        return array.reshape(0, 2)
    if array.ndim != 2 or array.shape[1] != 2:
        raise DataError(f"a lane has shape {array.shape}; expected (n, 2): n points, x and y")
    return array


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def lines_file(entry: str) -> str:
    """The lane file of a list entry: its ending is replaced by ``.lines.txt``."""
    stem, dot, _ = entry.rpartition(".")
    return (stem if dot else entry).lstrip("/") + ".lines.txt"


def read_list(path: Path) -> list[str]:
    """Entries of a list file: one image per line; further columns of train_gt.txt are dropped.

    Raises:
        DataError: the file is missing or empty, or an entry leads out of the dataset.
    """
    entries = [
        require_below(_TRAIN_COLUMNS.sub("", line), f"{path}, line {number}")
        for number, line in read_lines(path)
    ]
    if not entries:
        raise DataError(f"{path}: has no entry; expected one image like /folder/00000.jpg per line")
    return entries


def read_categories(folder: Path) -> dict[str, list[str]]:
    """Entries of each category from CULane's ``list/test_split``: test0_normal.txt -> normal.

    Raises:
        DataError: the folder has no ``.txt`` file, or two of one category.
    """
    files = sorted(file for file in folder.glob("*.txt") if not file.name.startswith("."))
    if not files:
        raise DataError(
            f"{folder}: no .txt files; expected one list per category, like test0_normal.txt in "
            "CULane's list/test_split"
        )
    found: dict[str, Path] = {}
    for file in files:
        first = found.setdefault(name := _NUMBERED.sub("", file.stem), file)
        if first != file:
            raise DataError(
                f"{folder}: {first.name} and {file.name} are both the category '{name}': rename "
                "one, or remove the old one"
            )
    return {name: read_list(file) for name, file in found.items()}
