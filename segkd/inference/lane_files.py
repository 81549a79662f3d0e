"""Lanes as files: ``.lines.txt`` as CULane's, JSON lines as TuSimple's, pixel maps for BDD100K."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segkd.files import write_text
from segkd.inference.lane_decode import Lanes
from segkd.metrics.culane_text import lines_file
from segkd.texts import target_below

ABSENT = -2  # x of a TuSimple lane that is not in a row
_DIGITS = 3


def lines_text(lanes: Sequence[np.ndarray]) -> str:
    """A line ``x y x y … `` per lane, each number followed by a blank as in CULane's own files."""
    lines = ("".join(f"{number(value)} " for value in lane.ravel()) for lane in lanes)
    return "".join(f"{line}\n" for line in lines)


def write_lines(folder: Path, entry: str | Path, lanes: Sequence[np.ndarray]) -> Path:
    """Writes the ``.lines.txt`` of an image; an empty file if it has no lane.

    Args:
        folder: of all files; folders below it are made.
        entry: the image below the root of its set, whose suffix is replaced.
        lanes: (n, 2) points each.

    Raises:
        DataError: the entry leads out of ``folder``.
    """
    path = target_below(folder, lines_file(Path(entry).as_posix()))
    write_text(path, lines_text(lanes))
    return path


def tusimple_item(raw_file: str, lanes: Lanes, run_time: float = 0.0) -> dict[str, Any]:
    """The object of an image in a TuSimple file; ``run_time`` is in milliseconds."""
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
    """A whole number without a point, others with at most three digits behind it."""
    shown = round(float(value), _DIGITS)
    return int(shown) if shown == int(shown) else shown
