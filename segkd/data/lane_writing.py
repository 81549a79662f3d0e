"""Writes files of lanes: ``.lines.txt`` as of CULane, JSON as of TuSimple and CurveLanes."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segkd.files import write_text
from segkd.metrics.culane_text import lines_file
from segkd.texts import target_below

ABSENT = -2  # x of a TuSimple lane in rows where it is absent
_DIGITS = 3


def lines_text(lanes: Sequence[np.ndarray]) -> str:
    """A line ``x y x y … `` per lane (n, 2), with a blank after each number as in CULane."""
    lines = ("".join(f"{number(value)} " for value in lane.ravel()) for lane in lanes)
    return "".join(f"{line}\n" for line in lines)


def write_lines(folder: Path, entry: str | Path, lanes: Sequence[np.ndarray]) -> Path:
    """Writes the ``.lines.txt`` of an image; an empty file if it has no lane.

    Args:
        folder: of all files; subfolders are created.
        entry: path of the image below the root of its set; its ending is replaced.
        lanes: points (n, 2) each, in pixels.

    Returns:
        The file.

    Raises:
        DataError: the entry leads out of ``folder``.
    """
    path = target_below(folder, lines_file(Path(entry).as_posix()))
    write_text(path, lines_text(lanes))
    return path


def list_line(entry: str, masks: Path, flags: Iterable[bool]) -> str:
    """An image's line in one of CULane's lists like ``train_gt.txt``.

    Args:
        entry: path of the image below the root of the set, with slashes.
        masks: folder of masks below the root.
        flags: whether each slot has a lane.
    """
    mask, there = masks / Path(entry).with_suffix(".png"), (str(int(flag)) for flag in flags)
    return f"/{entry} /{mask.as_posix()} {' '.join(there)}\n"


def write_curvelanes(folder: Path, entry: str | Path, lanes: Sequence[np.ndarray]) -> Path:
    """Writes the ``.lines.json`` of an image, in the form of CurveLanes' annotations.

    Args:
        folder, entry: as of ``write_lines``.
        lanes: points (n, 2) each, in pixels.

    Returns:
        The file.

    Raises:
        DataError: the entry leads out of ``folder``.
    """
    path = target_below(folder, Path(entry).with_suffix(".lines.json"))
    lines = [[{"x": str(number(x)), "y": str(number(y))} for x, y in lane] for lane in lanes]
    write_text(path, json.dumps({"Lines": lines}) + "\n")
    return path


def write_tusimple(path: Path, items: Sequence[dict[str, Any]]) -> None:
    """Writes one JSON object per line."""
    write_text(path, "".join(f"{json.dumps(item)}\n" for item in items))


def number(value: float) -> int | float:
    """Rounds to three decimals; whole numbers become int."""
    shown = round(float(value), _DIGITS)
    return int(shown) if shown == int(shown) else shown
