"""Classes of a set from the values of its masks, and names where a file or a known palette has
them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segkd.data import camvid, cityscapes
from segkd.data.class_files import Named
from segkd.data.mask_values import Values
from segkd.data.palette import bit_palette
from segkd.data.voc import VOC
from segkd.errors import DataError

_VOID, _VOID_16 = 255, 65535  # of masks of 8 and of 16 bits
_MOST = 254  # classes
_RARE = 1e-4  # share of pixels below which a colour is taken for interpolated
_MANY = 20  # colours from which on rare ones are taken for interpolated
_SURE = 8  # colours of a known palette that must be there
_SHOWN = 5
_VOID_NAMES = {"void", "unlabelled", "unlabeled", "ignore", "unknown"}
Color = tuple[int, int, int]


@dataclass
class Guess:
    """Classes of a set, as keys of a spec.

    Attributes:
        masks: ids, or colors.
        classes: entries of ``classes:``.
        ignore: ids that are void.
        ignore_colors: colours that are void.
        undeclared: what other values are.
        origin: from where the names are; empty if they are made up.
        notes: the reason of each choice, by key of the spec.
        counts: text on the pixels of each class, by name.
        doubts: what the user should check, as lines.
    """

    masks: str
    classes: list[dict[str, Any]]
    ignore: list[int] = field(default_factory=lambda: [_VOID])
    ignore_colors: list[Color] = field(default_factory=list)
    undeclared: str = "error"
    origin: str = ""
    notes: dict[str, str] = field(default_factory=dict)
    counts: dict[str, str] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Names of the classes."""
        return [entry["name"] for entry in self.classes]

    @property
    def in_order(self) -> bool:
        """Whether the masks number the classes: ids without a gap from 0 or 1 on, or 0 and 255."""
        ids = [entry["ids"][0] for entry in self.classes if "ids" in entry]
        first = ids[0] if ids else 0
        gapless = first in (0, 1) and ids == list(range(first, first + len(self.classes)))
        return gapless or ids == [0, _VOID]

    def rename(self, names: Sequence[str], origin: str) -> None:
        """Other names for as many classes.

        Args:
            names: in the order of the classes.
            origin: from where they are.
        """
        counts = list(self.counts.values())
        self.classes = [
            {**entry, "name": name} for entry, name in zip(self.classes, names, strict=True)
        ]
        self.counts = dict(zip(names, counts, strict=True)) if counts else {}
        self.origin = origin
        self.notes["classes"] = f"names: {origin}"


def guess_classes(
    values: Values, named: Sequence[Named] = (), file: Path | None = None, ending: str = ""
) -> Guess:
    """Classes, void values and names.

    Args:
        values: of the masks.
        named: classes that a file names.
        file: that file.
        ending: of the names of masks.

    Raises:
        DataError: masks of one value, or of too many; or names that do not fit the values.
    """
    if values.kind == "colors":
        guess = _of_colors(values, named, file)
    elif ending.endswith("labelIds.png") and _has_label_ids(values):
        guess = _of_cityscapes()
    else:
        guess = _of_ids(values, named, file)
    _require_classes(guess, values)
    guess.counts = _counts(guess, values)
    return guess


def _of_ids(values: Values, named: Sequence[Named], file: Path | None) -> Guess:
    seen = sorted(values.pixels)
    if set(seen) == {0, _VOID}:
        return _binary(named, file)
    has_void_16 = _VOID_16 in seen and len(seen) > 2  # of two values it is the white of a mask
    others = [value for value in seen if not has_void_16 or value != _VOID_16]
    known = [value for value in others if value != _VOID]
    void_255 = _VOID not in seen or max(known, default=0) < _MOST
    ids = known if void_255 else others
    ignore = [*([_VOID] if void_255 else []), *([_VOID_16] if has_void_16 else [])]
    guess = Guess("ids", [], ignore)
    if has_void_16:
        guess.notes["ignore"] = "65535 is void, as 255 is in masks of 8 bits"
    else:
        guess.notes["ignore"] = (
            "255 is void, as in most sets" if _VOID in seen else "no mask has 255; it would be void"
        )
    if named and ids:
        _name_ids(guess, ids, named, file)
    else:
        guess.classes = [{"name": f"class_{value}", "ids": [value]} for value in ids]
        first = f", the first of which is {ids[0]}" if ids and ids[0] else ""
        guess.notes["classes"] = (
            f"the ids in the masks{first}; names are made up: change them here, or put a "
            "classes.txt beside the images"
        )
    if values.palette:
        for entry in guess.classes:
            color = values.palette.get(entry["ids"][0])
            if color:
                entry["color"] = list(color)
        guess.notes["color"] = "for drawing, from the palette of the masks"
    return guess


def _binary(named: Sequence[Named], file: Path | None) -> Guess:
    names = [one.name for one in named] if len(named) == 2 else ["background", "foreground"]
    classes = [{"name": name, "ids": [value]} for name, value in zip(names, (0, 255), strict=True)]
    guess = Guess("ids", classes, [], origin=str(file) if file and len(named) == 2 else "")
    guess.notes["classes"] = "masks of black and white: 0 and 255" + (
        f"; names from {file}" if guess.origin else ""
    )
    guess.notes["ignore"] = "none: 255 is a class here"
    if named and not guess.origin:
        guess.doubts.append(
            f"{file} is not used: it names {len(named)} classes, and the masks have two values, 0 "
            "and 255. Write the names of these two there, one per line"
        )
    return guess


def _name_ids(guess: Guess, ids: list[int], named: Sequence[Named], file: Path | None) -> None:
    """Names from a file, by its ids, or by position from 0 or from 1."""
    guess.origin = str(file)
    if all(one.id is not None for one in named):
        by_id = {one.id: one for one in named if one.id is not None and 0 <= one.id < 2**16}
        how = "by the ids in that file"
    else:
        start = _first_id(ids, [one.name for one in named], file)
        by_id = dict(enumerate(named, start))
        how = f"in its order, the first is id {start}"
    unnamed = [value for value in ids if value not in by_id]
    void = [value for value, one in by_id.items() if means_void(one.name) and value != _VOID]
    guess.ignore = sorted({*guess.ignore, *unnamed, *void})
    reasons = []
    if unnamed:
        shown = ", ".join(map(str, unnamed[:_SHOWN])) + (", …" if len(unnamed) > _SHOWN else "")
        reasons.append(f"{shown}: in the masks, but not named in {file}")
        guess.doubts.append(
            f"assumed: what has the id {shown} in the masks is void, because {file} does not name "
            f"it ({how}). If that is wrong, write a line `id: name` for it there"
        )
    if void:
        names = ", ".join(f"{value} ({by_id[value].name})" for value in void)
        reasons.append(f"{names}: by the name in {file}")
        guess.doubts.append(
            f"assumed: {names} in the masks is void, by its name in {file}. If it is a class to "
            "learn, give it another name there"
        )
    if reasons:
        guess.notes["ignore"] = "; ".join(reasons)
    guess.classes = [
        {"name": one.name, "ids": [value], **({"color": list(one.color)} if one.color else {})}
        for value, one in sorted(by_id.items())
        if value != _VOID and value not in guess.ignore
    ]
    guess.notes["classes"] = f"names from {file}, {how}"


def _first_id(ids: list[int], names: list[str], file: Path | None) -> int:
    """The id of the first of some names, 0 or 1. Raises DataError where both or none fit."""
    last, count = max(ids), len(names)
    if last < count and (0 in ids or means_void(names[0]) or names[0].lower() == "background"):
        return 0
    if last < count:
        raise DataError(
            f"{file} names {count} classes, and masks have the ids {ids[0]} to {last}: nothing "
            f"says whether the first name is of id 0 or of id 1. Write the lines "
            f"`0: {names[0]}` to `{count - 1}: {names[-1]}` there, or `1: {names[0]}` to "
            f"`{count}: {names[-1]}`"
        )
    if last > count:
        raise DataError(
            f"{file} names {count} classes, but masks have the ids {ids[0]} to {last}. Complete "
            "it: one name per line, of id 0, 1, …; or lines `id: name`"
        )
    if 0 not in ids:
        return 1
    raise DataError(
        f"{file} names {count} classes, but masks have the ids 0 to {last}: one more, and nothing "
        f"says which of them has no name. If it is 0, write the lines `1: {names[0]}` to "
        f"`{last}: {names[-1]}` there; if it is {last}, `0: {names[0]}` to `{last - 1}: "
        f"{names[-1]}`. The one left out is void then; or name it as well"
    )


def means_void(name: str) -> bool:
    """Whether a class has a name of pixels without a class, like ``unlabeled``."""
    return name.lower() in _VOID_NAMES


def _has_label_ids(values: Values) -> bool:
    """Whether most pixels have ids of the 19 classes, and none has an id above those."""
    ids = cityscapes.LABEL_IDS.tolist()
    return max(values.pixels) <= max(ids) and sum(map(values.share, ids)) > 0.5


def _of_cityscapes() -> Guess:
    table = zip(cityscapes.CLASSES, cityscapes.LABEL_IDS, cityscapes.PALETTE, strict=True)
    classes = [
        {"name": name, "ids": [int(value)], "color": [int(part) for part in color]}
        for name, value, color in table
    ]
    guess = Guess("ids", classes, [_VOID], undeclared="ignore", origin="Cityscapes")
    guess.notes["classes"] = "label ids of Cityscapes, by the names of the masks: 19 classes"
    guess.notes["undeclared"] = "the other label ids of Cityscapes are void"
    return guess


def _of_colors(values: Values, named: Sequence[Named], file: Path | None) -> Guess:
    seen = {_unpacked(value): value for value in values.pixels}
    colored = [one for one in named if one.color is not None]
    tables = [(str(file), [(one.name, one.color) for one in colored if one.color])]
    tables += _known_palettes()
    for origin, table in tables:
        least = 2 if origin == str(file) else _SURE  # other programs use VOC's colours, too
        if table and _covers([color for _, color in table], seen, values, least):
            return _of_table(table, seen, values, origin)
    if len(seen) > _MANY:
        common = {color: one for color, one in seen.items() if values.share(one) >= _RARE}
    else:
        common = seen
    ordered = sorted(common)
    names = [one.name for one in named]
    fits = len(names) == len(ordered) and file is not None
    classes = []
    for number, color in enumerate(ordered):
        black = "background" if color == (0, 0, 0) else f"class_{number}"
        classes.append({"name": names[number] if fits else black, "colors": [list(color)]})
    guess = Guess("colors", classes, [], origin=str(file) if fits else "")
    guess.notes["classes"] = "the colours in the masks, darkest red first; " + (
        f"names from {file}, in its order: check them" if fits else "names are made up"
    )
    if fits:
        guess.doubts.append(
            f"{file} names {len(names)} classes without colours: they are given to the colours of "
            "the masks from the darkest red on, which is rarely right. Write lines `name, r, g, b` "
            "there"
        )
    elif named:
        guess.doubts.append(
            f"{file} is not used: it names {len(named)} classes, and the masks have {len(ordered)} "
            "colours that it does not explain. Write lines `name, r, g, b` there, one for each "
            "colour"
        )
    if (0, 0, 0) in common and not fits:
        guess.notes["classes"] += ". If black means unlabelled, move it to ignore_colors"
    if len(common) < len(seen):
        guess.undeclared = "ignore"
        guess.notes["undeclared"] = (
            f"{len(seen) - len(common)} rare colours, as from scaling or anti-aliasing, are void"
        )
    return guess


def _of_table(
    table: Sequence[tuple[str, Color]], seen: dict[Color, int], values: Values, origin: str
) -> Guess:
    classes = [
        {"name": name, "colors": [list(color)]} for name, color in table if not means_void(name)
    ]
    ignored = [color for name, color in table if means_void(name) and color in seen]
    declared = {color for _, color in table}
    rest = [color for color in seen if color not in declared]
    guess = Guess("colors", classes, [], ignored, origin=origin)
    guess.notes["classes"] = f"names and colours of {origin}"
    if rest:
        guess.undeclared = "ignore"
        share = sum(values.share(seen[color]) for color in rest)
        guess.notes["undeclared"] = f"{len(rest)} other colours, {100 * share:.2f} % of the pixels"
    return guess


def _known_palettes() -> list[tuple[str, list[tuple[str, Color]]]]:
    def rows(classes: Sequence[str], palette: np.ndarray) -> list[tuple[str, Color]]:
        colors = [(int(r), int(g), int(b)) for r, g, b in palette.tolist()]
        return list(zip(classes, colors, strict=True))

    black: list[tuple[str, Color]] = [("void", (0, 0, 0))]
    border: list[tuple[str, Color]] = [("void", (224, 224, 192))]
    voc = rows(VOC.classes, bit_palette(len(VOC.classes)))
    return [
        ("Cityscapes", rows(cityscapes.CLASSES, cityscapes.PALETTE) + black),
        ("CamVid", rows(camvid.CamVid.classes, camvid.CamVid.palette) + black),
        ("Pascal VOC", voc + border),
    ]


def _covers(colors: Sequence[Color], seen: dict[Color, int], values: Values, least: int) -> bool:
    """Whether a table has nearly all pixels, and at least ``least`` of its colours are there."""
    there = [color for color in colors if color in seen]
    share = sum(values.share(seen[color]) for color in there)
    return share > 0.99 and len(there) >= least


def _require_classes(guess: Guess, values: Values) -> None:
    if len(guess.classes) > _MOST:
        raise DataError(
            f"the masks have {len(guess.classes)} values, more than {_MOST} classes. Are they ids "
            "of instances, or photographs? Say which folder has the class masks: --images DIR "
            "--masks DIR"
        )
    if len(guess.classes) < 2:
        there = ", ".join(map(str, sorted(values.pixels)[:_SHOWN]))
        raise DataError(
            f"the masks have one class only (values: {there}), so there is nothing to tell apart. "
            "Give masks with at least two classes besides 255"
        )


def _counts(guess: Guess, values: Values) -> dict[str, str]:
    found = {}
    for entry in guess.classes:
        keys = entry.get("ids") or [r << 16 | g << 8 | b for r, g, b in entry["colors"]]
        share = 100 * sum(values.share(key) for key in keys)
        masks = sum(not seen.isdisjoint(keys) for seen in values.by_mask.values())
        text = f"{share:.2f} % of the pixels, in {masks} of {values.read} masks"
        found[entry["name"]] = text if masks else "in no mask"
    return found


def _unpacked(value: int) -> Color:
    return value >> 16, value >> 8 & 255, value & 255
