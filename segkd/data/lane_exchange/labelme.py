"""labelme: a JSON file beside each image, with shapes of type ``linestrip`` or ``line``.

https://github.com/wkentaro/labelme. Flags of an image are its categories. ``train.txt``,
``val.txt`` and others at the root, with an image per line, are ours: labelme has no splits.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segkd.data.files import files_below
from segkd.data.lane_exchange.annotated import (
    Annotated,
    Labels,
    Left,
    Line,
    image_size,
)
from segkd.data.lane_lists import STANDARD
from segkd.data.lane_writing import number
from segkd.data.paired import IMAGE_ENDINGS
from segkd.errors import DataError
from segkd.files import write_text
from segkd.texts import is_number, json_kind, parse_json, read_lines, read_text, target_below

VERSION = "5.5.0"
_LINES = ("linestrip", "line")


def json_files(root: Path) -> list[Path]:
    """The JSON files below a folder, also in linked folders, without copies of notebooks etc."""
    return files_below(root, (".json",))


def is_labelme(path: Path) -> bool:
    """Whether a JSON file is one of labelme."""
    try:
        item = parse_json(read_text(path), str(path))
    except DataError:
        return False
    return isinstance(item, dict) and {"shapes", "imagePath"} <= item.keys()


def read_labelme(root: Path, left: Left, labels: Labels | None = None) -> list[Annotated]:
    """Reads all labelme files below a folder.

    Args:
        root: the folder; images are named by their paths below it.
        left: gets shapes that are no lanes.
        labels: of shapes that are lanes; None: all lines.

    Raises:
        DataError: names the file that is not one of labelme, or an image out of the folder.
    """
    splits, labels = _splits(root), labels or Labels()
    found = [_read(path, root, left, labels, splits) for path in json_files(root)]
    images = [one for one in found if one is not None]
    if not images:
        raise DataError(f"{root}: has no JSON file of labelme. Give the folder with its files")
    return images


def _read(
    path: Path, root: Path, left: Left, labels: Labels, splits: dict[str, str]
) -> Annotated | None:
    item = parse_json(read_text(path), str(path))
    if not isinstance(item, dict) or "shapes" not in item:
        left.add("JSON files that are not of labelme", path)
        return None
    name, shapes = item.get("imagePath"), item["shapes"]
    if not isinstance(name, str) or not isinstance(shapes, list):
        raise DataError(
            f"{path}: expected labelme's keys imagePath (a text) and shapes (a list), got "
            f"{json_kind(name)} and {json_kind(shapes)}. Save it with labelme again"
        )
    # Not resolved: images may be links to files of another disk or of a store.
    image = Path(os.path.normpath(path.absolute().parent / name.replace("\\", "/")))
    top = os.path.normpath(root.absolute())  # of a root like `../drives`, too
    if not image.is_relative_to(top):
        raise DataError(
            f"{path}: its image {image} is not below {root}. Convert a folder that has both"
        )
    entry = image.relative_to(top).as_posix()
    height, width = item.get("imageHeight"), item.get("imageWidth")
    told = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    lines = [_line(shape, number, path, left, labels) for number, shape in enumerate(shapes, 1)]
    flags = item.get("flags") or {}
    categories = tuple(name for name, on in flags.items() if on is True)
    return Annotated(
        root / entry,
        entry,
        image_size(image, told, path),
        tuple(line for line in lines if line is not None),
        splits.get(entry, ""),
        categories,
    )


def _line(shape: Any, number: int, path: Path, left: Left, labels: Labels) -> Line | None:
    where = f"{path}, shape {number}"
    if not isinstance(shape, dict) or not isinstance(shape.get("points"), list):
        raise DataError(f"{where}: expected an object with points. Save it with labelme again")
    kind, label = shape.get("shape_type", "polygon"), str(shape.get("label") or "")
    if kind not in _LINES:
        left.add(f"shapes of type '{kind}', which are no lines", path)
        return None
    if not labels.accept(label):
        left.add(f"lines labelled '{label}', which --labels does not name", path)
        return None
    points = shape["points"]
    pairs = all(isinstance(p, list) and len(p) == 2 and all(map(is_number, p)) for p in points)
    if not pairs:
        raise DataError(f"{where}: points are not pairs of numbers. Draw the line again")
    if len(points) < 2:
        left.add("lines of one point", path)
        return None
    return Line(np.array(points, np.float64), label)


def _splits(root: Path) -> dict[str, str]:
    """Split by entry, from our list files: of any name, with an image per line."""
    found: dict[str, str] = {}
    for path in sorted(root.glob("*.txt"), key=lambda path: (path.stem not in STANDARD, path)):
        lines = [line.lstrip("/") for _, line in read_lines(path)]
        if path.stem in STANDARD or all(line.lower().endswith(IMAGE_ENDINGS) for line in lines):
            for line in lines:
                found.setdefault(line, path.stem)
    return found


def write_labelme(out: Path, images: Sequence[Annotated]) -> None:
    """Writes a JSON file per image, and a list file per split.

    Args:
        out: the folder; the images belong at their entries below it.
        images: with splits.

    Raises:
        DataError: an entry leads out of the folder.
    """
    for one in images:
        height, width = one.size
        item = {
            "version": VERSION,
            "flags": dict.fromkeys(one.categories, True),
            "shapes": [_shape(line) for line in one.lines],
            "imagePath": Path(one.entry).name,
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        path = target_below(out, Path(one.entry).with_suffix(".json"))
        write_text(path, json.dumps(item, indent=2) + "\n")
    for split in sorted({one.split for one in images}):
        entries = [f"{one.entry}\n" for one in images if one.split == split]
        write_text(out / f"{split}.txt", "".join(entries))


def _shape(line: Line) -> dict[str, Any]:
    return {
        "label": line.label or "lane",
        "points": [[number(value) for value in point] for point in line.points.tolist()],
        "group_id": None,
        "description": "",
        "shape_type": "linestrip",
        "flags": {},
    }
