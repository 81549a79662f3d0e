"""The record that `segkd predict` writes of its label maps, for their scoring."""

import json
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from segkd.data.files import files_below
from segkd.data.reading import read_ids
from segkd.errors import ConfigError, DataError, SegKDError, shortened
from segkd.inference.label_formats import ADE20K, CITYSCAPES, Format
from segkd.models.class_names import order_of
from segkd.texts import json_kind, parse_json, read_text

_log = logging.getLogger(__name__)

RECORD = "format.json"
_CLASS_IDS = ("labels", "palette", "voc")  # formats of `segkd predict` that hold class ids
_LOOKED_AT = 16  # files
_FREQUENT = 0.01  # share of pixels
_REPAIR = "Remove it and give --class-ids or not, or predict again"


def record(format: str, classes: tuple[str, ...]) -> str:
    """The content of the record.

    Args:
        format: of `segkd predict`.
        classes: K names.
    """
    return json.dumps({"format": format, "classes": list(classes)}, indent=2) + "\n"


def label_maps(predictions: Path) -> Path:
    """The folder of label maps in a folder of `segkd predict`; any other folder is unchanged."""
    own = predictions / "labels"
    return own if (predictions / "classes.json").is_file() and own.is_dir() else predictions


def as_recorded(form: Format, predictions: Path) -> tuple[Format, str]:
    """The format that the record next to the predictions declares, and a line about it.

    Args:
        form: of the annotations, and of the predictions without a record.
        predictions: a folder of label maps, see ``label_maps``.

    Raises:
        ConfigError: the record contradicts ``form``.
        DataError: the record is broken, or there is none and the ids look like class ids.
        CheckpointError: other classes were predicted.
    """
    file = next(
        (f for f in (predictions / RECORD, predictions.parent / RECORD) if f.is_file()), None
    )
    if file is None:
        _require_plausible(form, predictions)
        return form, ""
    kind, classes = _read(file)
    if kind in (CITYSCAPES.name, ADE20K):
        if form.name != kind or form.class_ids:
            wanted = "class ids" if form.class_ids else form.name
            raise ConfigError(
                f"{predictions} holds ids of {kind}, as {file} says, but is to be scored as "
                f"{wanted}. Use --dataset {kind} without --class-ids, or predict again with "
                "--format labels"
            )
        return form, f"predictions: ids of {kind}, as {file} says"
    order = order_of(classes, form.classes, file)
    table = tuple(order.index(position) for position in range(len(order)))
    form = replace(form, class_ids=True, order=table)
    return form, f"predictions: class ids, as {file} says"


def _read(file: Path) -> tuple[str, list[str]]:
    try:
        found = parse_json(read_text(file), str(file))
    except DataError as error:
        raise DataError(f"{error}. {_REPAIR}") from None
    found = found if isinstance(found, dict) else {}
    kind, classes = found.get("format"), found.get("classes")
    if not isinstance(kind, str):
        raise _says_nothing(file, "format", "a text", kind)
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise _says_nothing(file, "classes", "a list of names", classes)
    if kind not in (*_CLASS_IDS, CITYSCAPES.name, ADE20K):
        raise DataError(f"{file}: unknown format {shortened(kind)}. Predict again")
    return kind, classes


def _says_nothing(file: Path, key: str, expected: str, got: object) -> DataError:
    kind = "a list of other things" if isinstance(got, list) else json_kind(got)
    text = f"{key} is {kind}; expected {expected}"
    return DataError(f"{file} does not say what the label maps hold: {text}. {_REPAIR}")


def _require_plausible(form: Format, predictions: Path) -> None:
    """Looks for class ids that would be scored as ids of a benchmark: those of ADE20K are logged.

    Raises:
        DataError: there are class ids instead of label ids of Cityscapes.
    """
    if form.name not in (CITYSCAPES.name, ADE20K) or form.class_ids or not predictions.is_dir():
        return
    pixels: Counter[int] = Counter()
    for path in files_below(predictions, (".png", ".bmp", ".tif", ".tiff"))[:_LOOKED_AT]:
        try:
            ids = read_ids(path)
        except SegKDError:
            continue
        found, counts = np.unique(ids, return_counts=True) if ids.ndim == 2 else ([-1], [1])
        pixels.update(dict(zip(map(int, found), map(int, counts), strict=True)))
    if form.name == ADE20K:
        _warn_of_zeros(form, predictions, pixels)
        return
    values = set(pixels) - {255}
    highest, evaluated = len(form.classes) - 1, {v for v, at in form.values if at >= 0}
    if values and min(values) >= 0 and max(values) <= highest and len(values - evaluated) > 1:
        raise DataError(
            f"{predictions} holds ids {min(values)} to {max(values)}, {len(values - evaluated)} of "
            "which are not evaluated: these are class ids (train ids), not label ids (7 to 33). "
            "Add --class-ids, or write label ids: segkd predict … --format cityscapes"
        )


def _warn_of_zeros(form: Format, predictions: Path, pixels: Counter[int]) -> None:
    """A warning if 0, which networks do not predict, is frequent: as a class id it is the wall.

    No error: pixels may be left out on purpose.
    """
    share, last = pixels[0] / max(1, pixels.total()), len(form.classes)
    if share > _FREQUENT and last not in pixels:
        _log.warning(
            "%s: %.0f %% of the pixels have the id 0, which is no class of %s, and none has %d. "
            "Class ids 0 to %d would be scored as the class before theirs: for these add "
            "--class-ids",
            *(predictions, 100 * share, form.name, last, last - 1),
        )
