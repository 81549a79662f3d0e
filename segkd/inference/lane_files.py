"""Lanes as files: ``.lines.txt`` for CULane, JSON lines for TuSimple."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segkd.files import write_text
from segkd.inference.lane_decode import Lanes
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


def tusimple_item(raw_file: str, lanes: Lanes, run_time: float = 0.0) -> dict[str, Any]:
    """The JSON object of an image in a TuSimple file.

    Args:
        raw_file: path of the image below the root of its set.
        lanes: of the image, at TuSimple's rows.
        run_time: milliseconds.
    """
    present = lanes.x[~np.isnan(lanes.x).all(axis=1)]
    return {
        "raw_file": raw_file,
        "lanes": [[ABSENT if x != x else number(x) for x in lane] for lane in present.tolist()],
        "h_samples": [number(y) for y in lanes.y.tolist()],
        "run_time": number(run_time),
    }


def write_tusimple(path: Path, items: Sequence[dict[str, Any]]) -> None:
    """Writes one JSON object per line."""
    write_text(path, "".join(f"{json.dumps(item)}\n" for item in items))


def number(value: float) -> int | float:
    """Rounds to three decimals; whole numbers become int."""
    shown = round(float(value), _DIGITS)
    return int(shown) if shown == int(shown) else shown
