"""Names of classes in a file beside the images: lists, tables of colours, JSON."""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segkd.data.paired import IMAGE_ENDINGS
from segkd.errors import DataError
from segkd.texts import read_text

_STEMS = re.compile(
    r"(class(es)?|labels?|names|categories|obj)([-_ ]?(names?|dict|list|colou?rs?|map|info))?"
    r"|id2label|label2id|colou?rs?|colou?r[-_ ]?(map|table)|palette|dataset|config",
    re.IGNORECASE,
)
_ENDINGS = (".txt", ".csv", ".json", ".names")
_LARGEST = 1 << 20  # bytes
_ID = r"\d{1,5}"
_RGB = r"\d{1,3}[\s,;]+\d{1,3}[\s,;]+\d{1,3}"
_LINES = (  # of text files, with the groups `name`, `id`, `rgb`
    re.compile(rf"(?P<rgb>{_RGB})[\s,;:]+(?P<name>[^\d\s].*)"),
    re.compile(rf"(?P<name>[^:;]*[^:;\d\s,][^:;,]*?)\s*[:,;\t]\s*(?P<rgb>{_RGB})[:,;]*"),
    re.compile(rf"(?P<id>{_ID})\s*[:,;.\s]\s*(?P<name>[^\d\s].*)"),
    re.compile(rf"(?P<name>[^\d\s].*?)\s*[:,;=\t]\s*(?P<id>{_ID})"),
    re.compile(r"(?P<name>[^\d\s].*)"),
)
Color = tuple[int, int, int]


@dataclass(frozen=True)
class Named:
    """A class as a file names it; ``id`` and ``color`` where the file says them."""

    name: str
    id: int | None = None
    color: Color | None = None


def find_class_file(root: Path) -> tuple[Path, list[Named]] | None:
    """The first file in a folder, or one level below it, that names at least two classes."""
    for folder in (root, *sorted(path for path in root.glob("*/") if path.is_dir())):
        for path in sorted(folder.iterdir()):
            known = path.suffix.lower() in _ENDINGS and _STEMS.fullmatch(path.stem)
            if known and path.is_file() and path.stat().st_size <= _LARGEST:
                found = read_class_file(path)
                if len(found) > 1:
                    return path, found
    return None


def read_class_file(path: Path) -> list[Named]:
    """The classes that a file names; empty if it is of another kind."""
    try:
        text = read_text(path)
    except DataError:
        return []
    if path.suffix.lower() == ".json":
        # Other programs' settings: numbers in them are no ids of classes.
        return _of_json(text, keys_alone=path.stem.lower() in ("config", "dataset"))
    if path.suffix.lower() == ".csv":
        table = _of_table(text)
        if table:
            return table
    return _of_lines(text)


def _of_lines(text: str) -> list[Named]:
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    for pattern in _LINES:  # one form holds for all lines
        matches = [pattern.fullmatch(line) for line in lines]
        if matches and all(matches):
            found = [_named(match.groupdict()) for match in matches if match]
            names = {one.name for one in found}
            files = any(name.lower().endswith(IMAGE_ENDINGS) for name in names)
            return found if len(names) == len(found) and not files else []
    return []


def _named(parts: dict[str, str | Any]) -> Named:
    rgb = [int(value) for value in re.findall(r"\d+", parts.get("rgb") or "")]
    color = (rgb[0], rgb[1], rgb[2]) if len(rgb) == 3 and max(rgb) < 256 else None
    number = parts.get("id")
    return Named(parts["name"].strip(" '\"\t,;"), None if number is None else int(number), color)


def _of_table(text: str) -> list[Named]:
    """A CSV with a header: name, r, g, b, or name and id; with commas, semicolons or tabs."""
    lines = text.splitlines()
    mark = max(",;\t", key=lines[0].count) if lines else ","
    rows = list(csv.reader(lines, delimiter=mark))
    if len(rows) < 3:
        return []
    header = [cell.strip().lower() for cell in rows[0]]

    def column(*names: str) -> int | None:
        return next((header.index(name) for name in names if name in header), None)

    name = column("name", "class", "class_name", "label", "label_name", "category")
    rgb = [column(*names) for names in (("r", "red"), ("g", "green"), ("b", "blue"))]
    number = column("id", "index", "value", "class_id", "label_id", "idx")
    if name is None:
        return []
    found = []
    for row in rows[1:]:
        cells = [cell.strip() for cell in row]
        if len(cells) != len(header):
            continue
        colors = [int(cells[at]) for at in rgb if at is not None and cells[at].isdecimal()]
        own = cells[number] if number is not None else ""
        color = (colors[0], colors[1], colors[2]) if len(colors) == 3 else None
        found.append(Named(cells[name], int(own) if own.isdecimal() else None, color))
    return found


def _of_json(text: str, *, keys_alone: bool) -> list[Named]:
    """The classes of a JSON file; ``keys_alone``: below one of the known keys, or a list."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return []
    if isinstance(data, dict):
        for key in ("id2label", "classes", "labels", "categories", "names"):
            if isinstance(data.get(key), dict | list):
                return list(_entries(data[key]))
        if keys_alone:
            return []
    return list(_entries(data)) if isinstance(data, dict | list) else []


def _entries(data: dict[str, Any] | list[Any]) -> Iterator[Named]:
    if isinstance(data, list):
        for entry in data:
            if isinstance(entry, str):
                yield Named(entry)
            elif isinstance(entry, dict):
                name = next((entry[k] for k in ("name", "readable", "label") if k in entry), None)
                number = next((entry[k] for k in ("id", "trainId", "value") if k in entry), None)
                color = entry.get("color", entry.get("colour"))
                if isinstance(name, str):
                    yield Named(name, number if isinstance(number, int) else None, _rgb(color))
        return
    for key, value in data.items():
        if isinstance(value, str) and key.isdecimal():
            yield Named(value, int(key))
        elif isinstance(value, int) and not isinstance(value, bool):
            yield Named(key, value)
        elif _rgb(value):
            yield Named(key, None, _rgb(value))


def _rgb(value: Any) -> Color | None:
    ok = isinstance(value, list | tuple) and len(value) == 3
    if not ok or not all(isinstance(part, int) and 0 <= part < 256 for part in value):
        return None
    return value[0], value[1], value[2]
