"""VIA 2, the VGG Image Annotator: one JSON file with regions of type ``polyline``.

https://www.robots.ox.ac.uk/~vgg/software/via. A project, or the exported annotations. A region's
label is one of its attributes. True attributes of a file (``category`` when written here) are its
categories; its ``split`` is ours, too.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segkd.data.lane_exchange.annotated import Annotated, Labels, Left, Line, image_size
from segkd.data.lane_writing import number
from segkd.errors import DataError
from segkd.files import write_text
from segkd.texts import is_number, json_kind, parse_json, read_text, require_below

FILE = "via_project.json"
ATTRIBUTE = "lane"
_USUAL = (ATTRIBUTE, "label", "class", "name", "type")  # of attributes that are labels
_CATEGORY, _SPLIT = "category", "split"


def is_via(path: Path) -> bool:
    """Whether a JSON file is one of VIA."""
    try:
        item = parse_json(read_text(path), str(path))
    except DataError:
        return False
    return isinstance(item, dict) and _entries(item) is not None


def read_via(
    path: Path, left: Left, labels: Labels | None = None, attribute: str = ""
) -> list[Annotated]:
    """Reads a project, or exported annotations.

    Args:
        path: the file; images are named relative to its folder, or to the project's own.
        left: gets regions that are no lanes.
        labels: of regions that are lanes; None: all polylines.
        attribute: of regions, that is the label; empty: ``lane``, ``label``, ``class``, ``name``,
            ``type``, or the only one.

    Raises:
        DataError: names the entry that is malformed; or no region has the attribute.
    """
    item = parse_json(read_text(path), str(path))
    entries = _entries(item) if isinstance(item, dict) else None
    if entries is None:
        raise DataError(
            f"{path}: is not a file of VIA 2: expected an object of entries with filename and "
            f"regions, or a project, got {json_kind(item)}. Save it with VIA: Project > Save, or "
            "Annotation > Export as JSON"
        )
    if attribute:
        _require_attribute(attribute, entries, path)
    folder = _folder(item, path) if isinstance(item, dict) else path.parent
    labels = labels or Labels()
    return [_read(entry, path, folder, left, labels, attribute) for entry in entries]


def _entries(item: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The entries of images; None if it is another kind of file."""
    data = item.get("_via_img_metadata", item)
    if not isinstance(data, dict) or not data:
        return None
    found = list(data.values())
    good = all(isinstance(one, dict) and {"filename", "regions"} <= one.keys() for one in found)
    return found if good else None


def _regions(entry: dict[str, Any]) -> list[Any]:
    """The regions of an image: a list, or an object in older files."""
    regions = entry["regions"]
    return list(regions.values()) if isinstance(regions, dict) else regions


def _require_attribute(attribute: str, entries: Sequence[dict[str, Any]], path: Path) -> None:
    """Raises DataError if no region has the attribute."""
    known: set[str] = set()
    for entry in entries:
        for region in _regions(entry) if isinstance(entry["regions"], list | dict) else ():
            told = region.get("region_attributes") if isinstance(region, dict) else None
            known.update(told if isinstance(told, dict) else ())
    if attribute not in known:
        listing = f"Regions have: {', '.join(sorted(known))}" if known else "Regions have none"
        raise DataError(f"{path}: --attribute: no region has '{attribute}'. {listing}")


def _folder(item: dict[str, Any], path: Path) -> Path:
    """Where the images of a project are: beside it, else in the folder of its settings."""
    core = (item.get("_via_settings") or {}).get("core") or {}
    told = core.get("default_filepath") or ""
    return path.parent / told if told and (path.parent / told).is_dir() else path.parent


def _read(
    entry: dict[str, Any],
    path: Path,
    folder: Path,
    left: Left,
    labels: Labels,
    attribute: str,
) -> Annotated:
    name, regions = entry["filename"], entry["regions"]
    if not isinstance(name, str) or not isinstance(regions, list | dict):
        raise DataError(
            f"{path}: an entry has filename {json_kind(name)} and regions {json_kind(regions)}, "
            "expected a text and a list. Save it with VIA again"
        )
    where = f"{path}, {name}"
    require_below(name, str(path))
    image = folder / name
    if Path(name).is_absolute():
        raise DataError(
            f"{where}: the image has an absolute path. Put it beside the file, and its path "
            "relative to it into filename"
        )
    lines = tuple(_lines(_regions(entry), where, left, labels, attribute))
    told = entry.get("file_attributes") or {}
    categories = [name for name, on in told.items() if on in (True, "true", "yes", "1")]
    category = told.get(_CATEGORY)
    if isinstance(category, str):
        categories += [one.strip() for one in category.split(",") if one.strip()]
    elif isinstance(category, dict):  # a check box
        categories += [one for one, on in category.items() if on]
    split = _split(told.get(_SPLIT), where)
    size = image_size(image, None, path)
    return Annotated(image, Path(name).as_posix(), size, lines, split, tuple(categories))


def _split(value: object, where: str) -> str:
    """The split that was written into a field; empty without one. Raises DataError."""
    split = value.strip() if isinstance(value, str) else ""
    if "/" in split or "\\" in split:  # lists are named after it
        raise DataError(f"{where}: its {_SPLIT} is '{split}'. Write a name, like train or val")
    return split


def _lines(
    regions: Sequence[Any], where: str, left: Left, labels: Labels, attribute: str
) -> Iterator[Line]:
    for place, region in enumerate(regions, 1):
        shape = region.get("shape_attributes") if isinstance(region, dict) else None
        if not isinstance(shape, dict):
            raise DataError(f"{where}, region {place}: has no shape_attributes. Save it again")
        kind = shape.get("name")
        if kind != "polyline":
            left.add(f"regions of type '{kind}', which are no lines", where)
            continue
        label = _label(region.get("region_attributes") or {}, attribute)
        if not labels.accept(label):
            left.add(f"lines labelled '{label}', which --labels does not name", where)
            continue
        x, y = shape.get("all_points_x") or [], shape.get("all_points_y") or []
        if not (isinstance(x, list) and isinstance(y, list)) or len(x) != len(y):
            raise DataError(
                f"{where}, region {place}: all_points_x and all_points_y are not two lists of as "
                "many numbers. Draw the line again"
            )
        if not all(map(is_number, [*x, *y])):
            raise DataError(
                f"{where}, region {place}: has points that are not numbers. Draw it again"
            )
        if len(x) < 2:
            left.add("lines of one point", where)
            continue
        yield Line(np.stack([np.array(x, np.float64), np.array(y, np.float64)], 1), label)


def _label(attributes: Any, wanted: str) -> str:
    """The label among a region's attributes."""
    if not isinstance(attributes, dict):
        return ""
    names = [wanted] if wanted else [name for name in _USUAL if name in attributes]
    if not names and len(attributes) == 1:
        names = list(attributes)
    value = attributes.get(names[0]) if names else None
    if isinstance(value, dict):  # a check box
        value = next((name for name, on in value.items() if on), None)
    return "" if value is None else str(value)


def write_via(out: Path, images: Sequence[Annotated]) -> Path:
    """Writes a project that VIA opens, ``via_project.json`` beside the images.

    Args:
        out: the folder; the images belong at their entries below it.
        images: with splits.

    Returns:
        The file.
    """
    entries = {}
    for one in images:
        path = out / one.entry
        length = path.stat().st_size if path.is_file() else -1
        entries[f"{one.entry}{length}"] = {
            "filename": one.entry,
            "size": length,
            "regions": [_region(line) for line in one.lines],
            "file_attributes": {_CATEGORY: ",".join(one.categories), _SPLIT: one.split},
        }
    text = {"type": "text", "description": "", "default_value": ""}
    item = {
        "_via_settings": _SETTINGS,
        "_via_img_metadata": entries,
        "_via_attributes": {
            "region": {ATTRIBUTE: text},
            "file": {_CATEGORY: text, _SPLIT: text},
        },
        "_via_data_format_version": "2.0.10",
        "_via_image_id_list": list(entries),
    }
    write_text(out / FILE, json.dumps(item, indent=1) + "\n")
    return out / FILE


_SETTINGS = {
    "ui": {
        "annotation_editor_height": 25,
        "annotation_editor_fontsize": 0.8,
        "leftsidebar_width": 18,
        "image_grid": {
            "img_height": 80,
            "rshape_fill": "none",
            "rshape_fill_opacity": 0.3,
            "rshape_stroke": "yellow",
            "rshape_stroke_width": 2,
            "show_region_shape": True,
            "show_image_policy": "all",
        },
        "image": {
            "region_label": ATTRIBUTE,
            "region_color": ATTRIBUTE,
            "region_label_font": "10px Sans",
            "on_image_annotation_editor_placement": "NEAR_REGION",
        },
    },
    "core": {"buffer_size": 18, "filepath": {}, "default_filepath": ""},
    "project": {"name": "lanes"},
}


def _region(line: Line) -> dict[str, Any]:
    x, y = line.points.T.tolist()
    return {
        "shape_attributes": {
            "name": "polyline",
            "all_points_x": [number(value) for value in x],
            "all_points_y": [number(value) for value in y],
        },
        "region_attributes": {ATTRIBUTE: line.label or "lane"},
    }
