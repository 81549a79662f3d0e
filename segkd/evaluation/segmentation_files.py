"""Scores of label maps in files, as the benchmarks compute them.

For Cityscapes equal to ``evalPixelLevelSemanticLabeling.py`` of cityscapesscripts: pixels whose
label is ignored are not counted; a pixel predicted as an id that is not evaluated is a false
negative of its class, but not a false positive of another. Without a prediction, all pixels of an
image are false negatives.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segkd.data.files import files_below
from segkd.data.reading import (
    SampleError,
    listed,
    packed_colors,
    read_ids,
    read_mask,
    size_text,
)
from segkd.errors import DataError
from segkd.evaluation.batches import Progress
from segkd.evaluation.table import nan_to_none
from segkd.inference.label_formats import CITYSCAPES, UNKNOWN, VOID, Format
from segkd.metrics.confusion import iou
from segkd.metrics.culane import run_tasks

_CITYSCAPES_KEY = re.compile(r"([^_]+_\d+_\d+)_?")
_ENDINGS = (".png", ".bmp", ".tif", ".tiff")

Pair = tuple[Path, Path | None]


@dataclass(frozen=True)
class Result:
    """Counts over all annotated images.

    Attributes:
        matrix: (K, K + 1) int64, rows are labels; the last column is no class or no prediction.
        format: classes and categories.
        images: number of annotated images.
        missing: names of those without a prediction.
        unused: number of prediction files without an annotation.
    """

    matrix: np.ndarray
    format: Format
    images: int
    missing: list[str] = field(default_factory=list)
    unused: int = 0

    @property
    def iou(self) -> dict[str, float]:
        """IoU by class name; NaN for absent classes."""
        names = range(len(self.format.classes))
        return dict(zip(self.format.classes, _iou(self.matrix, names), strict=True))

    @property
    def categories(self) -> dict[str, float]:
        """IoU by category, whose classes are merged; empty without categories."""
        names = list(dict.fromkeys(self.format.categories))
        places = [names.index(name) for name in self.format.categories]
        return dict(zip(names, _iou(self.matrix, places), strict=True)) if names else {}

    @property
    def miou(self) -> float:
        """Mean IoU in [0, 1] over the classes that occur."""
        return mean(self.iou.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; NaN becomes None."""
        facts: dict[str, Any] = {"miou": nan_to_none(self.miou), "iou": _plain_all(self.iou)}
        if self.format.categories:
            facts["category_miou"] = nan_to_none(mean(self.categories.values()))
            facts["category_iou"] = _plain_all(self.categories)
        return facts | {
            "images": self.images,
            "missing_predictions": len(self.missing),
            "missing": self.missing,
            "unused_predictions": self.unused,
            "classes": list(self.format.classes),
            "matrix": self.matrix.tolist(),
        }


def score_files(
    labels: Path,
    predictions: Path,
    form: Format = CITYSCAPES,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Result:
    """Scores a folder of predictions against a folder of annotations.

    Args:
        labels, predictions: folders, searched recursively.
        form: meaning of file names and values.
        workers: number of processes; None: all cores, but fewer for few images.
        progress: called with (done, total) images.

    Raises:
        DataError: no annotation or no prediction is found, or two for one image; a file cannot
            be read, has unknown values, or another size than its label.
    """
    pairs, unused = paired(labels, predictions, form)
    total = np.zeros((len(form.classes), len(form.classes) + 1), np.int64)
    for done, counts in enumerate(run_tasks(partial(count, form), pairs, workers), start=1):
        total += counts
        if progress is not None:
            progress(done, len(pairs))
    missing = [label.name for label, prediction in pairs if prediction is None]
    return Result(total, form, len(pairs), missing, unused)


def paired(labels: Path, predictions: Path, form: Format) -> tuple[list[Pair], int]:
    """Annotations with their predictions, and the number of unused predictions.

    Args:
        labels, predictions: folders, searched recursively.
        form: meaning of file names.

    Raises:
        DataError: no annotation or no prediction is found, or two for one image.
    """
    annotated: dict[str, Path] = {}
    for path in _files(labels, form.label_ending):
        first = annotated.setdefault(_key(path, labels, form), path)
        if first != path:
            raise DataError(f"{first} and {path} are two labels of one image. Remove one")
    if not annotated:
        wanted = f"files *{form.label_ending}" if form.label_ending else "label images"
        raise DataError(
            f"{labels}: there are no {wanted} of {form.name} in it or below. Give the folder of "
            "annotations: --labels DIR"
        )
    found: dict[str, Path] = {}
    files = _files(predictions, "")
    for path in files:
        key = _key(path, predictions, form)
        if key not in annotated and Path(key).name in annotated:
            key = Path(key).name  # predictions in subfolders, labels in one folder
        if key in found and key in annotated:
            raise DataError(
                f"{annotated[key].name} has two predictions: {found[key]} and {path}. Remove one"
            )
        found[key] = path
    # Predictions in other folders than their labels; not those that have a label of their own.
    by_stem = {Path(key).name: path for key, path in found.items() if key not in annotated}
    pairs = [(p, found.get(k) or by_stem.get(Path(k).name)) for k, p in sorted(annotated.items())]
    used: dict[Path, Path] = {}
    for label, prediction in pairs:
        if prediction is not None and used.setdefault(prediction, label) != label:
            raise DataError(
                f"{prediction} would be the prediction for {used[prediction]} and for {label}, "
                "which have the same name. Put predictions into the folders of their labels"
            )
    if not used:
        example = next(iter(annotated.values())).name
        raise DataError(
            f"{predictions}: none of {len(files)} files there is a prediction for one of "
            f"{len(pairs)} annotations, e.g. {example}. {form.naming}"
        )
    return pairs, len(files) - len(used)


def count(form: Format, pair: Pair) -> np.ndarray:
    """Pixel counts of one image by label and prediction, (K, K + 1) int64.

    Raises:
        DataError: a file cannot be read, has unknown values, or another size than its label.
    """
    classes = len(form.classes)
    label = _read(form, pair[0], is_label=True)
    if pair[1] is None:
        prediction = np.full_like(label, classes)
    else:
        prediction = _read(form, pair[1], is_label=False)
        if prediction.shape != label.shape:
            raise DataError(
                f"{pair[1]} is {size_text(prediction)}, but its label {pair[0]} is "
                f"{size_text(label)} (height x width). Predict at the size of the label"
            )
    cells = label.astype(np.int32) * (classes + 1) + prediction
    counts = np.bincount(cells.ravel(), minlength=(classes + 1) ** 2)
    return counts.reshape(classes + 1, classes + 1)[:classes].astype(np.int64)


def mean(scores: Iterable[float]) -> float:
    """Mean without NaN values; NaN if there are no others."""
    present = [score for score in scores if not math.isnan(score)]
    return math.fsum(present) / len(present) if present else math.nan


def _files(folder: Path, ending: str) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    return [path for path in files_below(folder, (ending,)) if path.suffix.lower() in _ENDINGS]


def _key(path: Path, folder: Path, form: Format) -> str:
    """The part of the name that label and prediction of an image share."""
    if form.name == CITYSCAPES.name:
        match = _CITYSCAPES_KEY.match(path.name)
        return match[1] if match else path.stem
    name = path.relative_to(folder).as_posix()
    image_ending = form.image_ending.rpartition(".")[0] + path.suffix
    for ending in (form.label_ending, image_ending, path.suffix):
        if ending and name.endswith(ending):
            return name[: -len(ending)]
    return name


def _read(form: Format, path: Path, *, is_label: bool) -> np.ndarray:
    """(H, W) int16 class ids; K is void in labels, and no class in predictions."""
    form = form if is_label else form.predicted
    mask = read_mask(path) if form.colors else read_ids(path)
    if (mask.ndim == 3) != form.colors:
        got, wanted = ("ids", "colours") if form.colors else ("colours", "ids")
        raise SampleError(path, f"it holds {got}, expected {wanted}", f"{form.meaning}.")
    values = packed_colors(mask) if form.colors else mask
    classes = _table(form)[values]
    unknown = classes == UNKNOWN
    if unknown.any():
        wrong = np.unique(values[unknown]).tolist()
        what = "label" if is_label else "prediction"
        text = f"the {what} has values {listed(wrong)} that are unknown in {form.name}"
        raise SampleError(path, text, f"{form.meaning}.")
    classes[classes == VOID] = len(form.classes)
    return classes


@lru_cache(maxsize=2)
def _table(form: Format) -> np.ndarray:
    """Class by value of a mask, cached per process."""
    table = np.full(1 << (24 if form.colors else 16), form.others, np.int16)
    for value, position in form.values:
        table[value] = position
    return table


def _iou(matrix: np.ndarray, groups: Sequence[int]) -> list[float]:
    """IoU of groups of classes; pixels predicted as no class are only false negatives."""
    places = [*groups, max(groups) + 1]
    merged = torch.zeros(places[-1] + 1, places[-1] + 1, dtype=torch.int64)
    rows, columns = np.meshgrid(places[:-1], places, indexing="ij")
    merged.index_put_(
        (torch.from_numpy(rows), torch.from_numpy(columns)), torch.from_numpy(matrix), True
    )
    return iou(merged)[:-1].tolist()


def _plain_all(scores: dict[str, float]) -> dict[str, float | None]:
    return {name: nan_to_none(value) for name, value in scores.items()}
