"""TuSimple: files of JSON lines with x at rows of the image; a file per split."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segkd.data.lane_exchange.annotated import (
    Annotated,
    Left,
    Line,
    image_size,
    slot_labels,
)
from segkd.data.lane_lists import STANDARD
from segkd.data.lane_writing import ABSENT, number, write_tusimple
from segkd.data.tusimple import FOLDERS, SPLITS, UNLABELLED, beside
from segkd.errors import DataError
from segkd.metrics.tusimple import read_items
from segkd.texts import is_number, json_kind, read_lines

Rows = Literal["benchmark", "points"]
_BENCHMARK = np.arange(160, 720, 10) / 720  # its rows over the height of its images
_KEYS = ("raw_file", "lanes", "h_samples")
_CLOSE = 0.5  # pixels


def label_files(root: Path) -> list[Path]:
    """The files of lanes below a root: JSON lines with raw_file and lanes.

    Not among them: the benchmark's tasks, whose lanes are empty because they are to be found.
    """
    files = _json_files(root, "*.json")
    return [path for path in files if not path.match(UNLABELLED) and _is_label_file(path)]


def _json_files(root: Path, pattern: str) -> list[Path]:
    folders = [root / folder for folder in FOLDERS]
    return [path for folder in folders for path in sorted(folder.glob(pattern))]


def _is_label_file(path: Path) -> bool:
    try:
        _, line = read_lines(path)[0]
        item = json.loads(line)
    except (DataError, IndexError, ValueError, RecursionError):
        return False
    return isinstance(item, dict) and set(_KEYS) <= item.keys()


def read_tusimple(root: Path, left: Left) -> list[Annotated]:
    """Reads all label files; ``label_data_0531`` is validation, as in most public code.

    Args:
        root: of the set.
        left: gets lanes of fewer than two points, and files without annotations.

    Raises:
        DataError: no label file, or with file and line what is malformed in it.
    """
    files = label_files(root)
    if not files:
        raise DataError(
            f"{root}: has no label file of TuSimple, like label_data_0313.json with a JSON object "
            "per line. Give the folder with these files"
        )
    for path in _json_files(root, UNLABELLED):
        left.add("lists of images without annotations", path)
    return [
        _read(root, file, line, item, left)
        for file in files
        for line, item in read_items(file, _KEYS).values()
    ]


def _read(root: Path, file: Path, line: int, item: dict[str, Any], left: Left) -> Annotated:
    where = f"{file}, line {line}"
    rows = _numbers(item["h_samples"], "h_samples", where)
    lines = []
    for place, values in enumerate(item["lanes"], 1):
        x = _numbers(values, f"lane {place}", where)
        if len(x) != len(rows):
            raise DataError(
                f"{where}: lane {place} has {len(x)} points, but h_samples has {len(rows)}. Give "
                "one x per row, -2 where the lane is absent"
            )
        points = np.stack([x, rows], 1)[x >= 0]
        if len(points) < 2:
            left.add("lanes of fewer than two points", where)
            continue
        lines.append(points)
    entry = item["raw_file"].lstrip("/")
    image = beside(file, entry, root)
    size = image_size(image, None, file)
    labels = slot_labels(lines, size)
    split = next((name for name in STANDARD if file.name in SPLITS[name]), file.stem)
    pairs = zip(lines, labels, strict=True)
    return Annotated(image, entry, size, tuple(Line(*pair) for pair in pairs), split)


def _numbers(values: object, what: str, where: str) -> np.ndarray:
    if not isinstance(values, list) or not all(map(is_number, values)):
        raise DataError(
            f"{where}: {what} is {json_kind(values)}, expected a list of numbers like "
            "[632, 625, -2]"
        )
    return np.array(values, np.float64)


def write_tusimple_files(
    out: Path, images: Sequence[Annotated], left: Left, rows: Rows = "benchmark"
) -> None:
    """Writes ``train.json``, ``val.json``, …: x of each line at rows of its image.

    Args:
        out: the folder; the images belong at their entries below it.
        images: with splits.
        left: gets what lines at rows cannot express.
        rows: the benchmark's 56, scaled with the height of the image, or the rows of all points of
            the image, which keep each point.
    """
    for split in sorted({one.split for one in images}):
        items = [_item(one, left, rows) for one in images if one.split == split]
        write_tusimple(out / f"{split}.json", items)
    for one in images:
        if one.categories:
            left.add("images with categories, which TuSimple does not have", one.entry)


def _item(one: Annotated, left: Left, rows: Rows) -> dict[str, Any]:
    height, width = one.size
    if rows == "benchmark":
        y = np.unique(np.round(_BENCHMARK * height))
    else:
        every = [line.points[:, 1] for line in one.lines]
        y = np.unique(np.concatenate([*every, [float(height - 1)]]).round(3))
    lanes = []
    for line in one.lines:
        x = sampled(line.points, y)
        outside = (x < 0) | (x > width - 1)
        if outside.any():
            left.add("lines with a part outside of the image", one.entry)
        x[outside] = np.nan
        if (~np.isnan(x)).sum() < 2:
            left.add("lines that cross fewer than two rows, left out", one.entry)
            continue
        _tell_distance(line.points, np.stack([x, y], 1)[~np.isnan(x)], one, left, rows)
        lanes.append([ABSENT if value != value else number(value) for value in x.tolist()])
    return {"lanes": lanes, "h_samples": [number(v) for v in y.tolist()], "raw_file": one.entry}


def sampled(points: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x (R,) at which a polyline (n, 2) crosses rows y (R,), NaN where it does not.

    Of several crossings that of the lowest piece counts.
    """
    line = points if points[0, 1] >= points[-1, 1] else points[::-1]
    x = np.full(len(y), np.nan)
    for (x0, y0), (x1, y1) in itertools.pairwise(line):
        low, high = min(y0, y1) - 5e-4, max(y0, y1) + 5e-4  # rows are rounded to three decimals
        crossed = (y >= low) & (y <= high) & np.isnan(x)
        share = (y[crossed] - y0) / (y1 - y0) if y1 != y0 else np.zeros(crossed.sum())
        x[crossed] = x0 + share.clip(0, 1) * (x1 - x0)
    return x


def _tell_distance(
    points: np.ndarray, kept: np.ndarray, one: Annotated, left: Left, rows: Rows
) -> None:
    """Says if points of a line are farther than half a pixel from what is written of it."""
    inside = (points[:, 0] >= 0) & (points[:, 0] <= one.size[1] - 1)
    far = distances(points[inside], kept)
    if len(far) and far.max() > _CLOSE:
        what = "lines with points more than half a pixel from what is written: "
        why = {
            "benchmark": "they are between rows, --rows points keeps them",
            "points": "they go up and down, and TuSimple has one x per row",
        }
        left.add(what + why[rows], one.entry)


def distances(points: np.ndarray, line: np.ndarray) -> np.ndarray:
    """Distance (n,) of points (n, 2) from a polyline (m, 2)."""
    begin, way = line[:-1], np.diff(line, axis=0)
    length = np.square(way).sum(1)
    apart = points[:, None] - begin
    share = ((apart * way).sum(2) / np.where(length > 0, length, 1)).clip(0, 1)
    return np.linalg.norm(apart - share[..., None] * way, axis=2).min(1)
