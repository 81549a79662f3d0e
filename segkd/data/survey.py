"""A quick check of labels before training, for faults with which a run would learn nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from segkd.data.base import Dataset
from segkd.data.duplicates import listed_twice
from segkd.data.findings import Finding
from segkd.data.folder import Folder
from segkd.data.paired import PairedDataset
from segkd.data.reading import header_size, mask_doubts
from segkd.errors import SegKDError

_LOOKED_AT = 32  # labels; smaller sets are checked completely


@dataclass
class _Seen:
    """Counts over the checked labels."""

    pixels: np.ndarray
    void: int = 0
    labels: int = 0
    files: list[str] = field(default_factory=list)


def survey(dataset: Dataset, *, most: int = _LOOKED_AT) -> list[Finding]:
    """Findings about the labels of a dataset, from an evenly spaced sample.

    Errors: no pixel of any class in the whole set, or only one of two classes and void, as for
    masks of 0 and 255 where 255 is meant as foreground. Findings from a part of a large set are
    warnings, as the rest may differ. Unreadable labels are not reported.

    Args:
        dataset: any set.
        most: number of labels to check.
    """
    dataset = getattr(dataset, "main", dataset)  # of a ``Joined`` set
    if dataset.task == "lanes" or dataset.unlabelled == len(dataset):
        return []
    chosen = sorted({int(i) for i in np.linspace(0, len(dataset) - 1, min(most, len(dataset)))})
    seen = _Seen(np.zeros(len(dataset.classes), np.int64))
    for index in chosen:
        label = _label(dataset, index)
        if label is None:
            continue
        known = label[(label != dataset.ignore_index) & (label < len(dataset.classes))]
        seen.pixels += np.bincount(known.ravel(), minlength=len(seen.pixels))
        seen.void += int((label == dataset.ignore_index).sum())
        seen.labels += 1
        seen.files.append(_mask_file(dataset, index))
    findings = [*_about_jpeg(seen.files), *listed_twice(dataset)]
    if seen.labels:
        findings += _about_classes(dataset, seen, whole=len(chosen) == len(dataset))
    return findings


def differing_sizes(dataset: Dataset, batch_size: int, limit: int | None) -> list[Finding]:
    """An error for images of two sizes that may be in one batch of an evaluation.

    Labels keep their stored size irrespective of ``data.resize``.

    Args:
        dataset: of the evaluation.
        batch_size: of the evaluation.
        limit: number of images to evaluate; None: all.
    """
    if batch_size == 1 or not isinstance(dataset, PairedDataset):
        return []
    first: tuple[Path, tuple[int, int]] | None = None
    for image, _ in dataset.pairs[:limit]:
        try:
            size = header_size(image)
        except SegKDError:
            continue  # the evaluation reports it
        first = first or (image, size)
        if size != first[1]:
            one, two = (f"{height}x{width}" for height, width in (first[1], size))
            text = (
                f"images differ in size: {first[0]} has {one}, {image} "
                f"has {two} (height x width), and eval.batch_size={batch_size} puts both together"
            )
            return [Finding("error", f"split '{dataset.split}'", text, "Set eval.batch_size=1.")]
    return []


def _label(dataset: Dataset, index: int) -> np.ndarray | None:
    try:
        if isinstance(dataset, PairedDataset):
            mask = dataset.pairs[index][1]
            return None if mask is None else dataset._read_label(mask)
        return dataset.read(index).label
    except SegKDError:
        return None


def _mask_file(dataset: Dataset, index: int) -> str:
    files = dataset.files(index)
    return "" if files is None or files[1] is None else str(files[1])


def _about_jpeg(files: Sequence[str]) -> list[Finding]:
    doubts = {file: doubt for file in files if file and (doubt := mask_doubts(Path(file)))}
    if not doubts:
        return []
    first = next(iter(doubts))
    others = f", as {len(doubts) - 1} others of {len(files)}" if len(doubts) > 1 else ""
    return [Finding("warning", first, f"the mask {doubts[first]}{others}", "Write masks as PNG.")]


def _about_classes(dataset: Dataset, seen: _Seen, *, whole: bool) -> list[Finding]:
    where = f"split '{getattr(dataset, 'split', '')}'"
    level: Literal["error", "warning"] = "error" if whole else "warning"
    of = f"{seen.labels} labels" + ("" if whole else " that were checked")
    there = [name for name, n in zip(dataset.classes, seen.pixels, strict=True) if n]
    if not there:
        text = f"no pixel of any class in {of}: all of it is void, and nothing can be learnt"
        return [Finding(level, where, text, void_advice(dataset))]
    if len(there) == 1 and len(dataset.classes) == 2 and seen.void:
        absent = next(name for name in dataset.classes if name not in there)
        share = 100 * seen.void / (seen.void + int(seen.pixels.sum()))
        text = (
            f"no pixel of '{absent}' in {of}, but {share:.1f} % are void: where masks are 0 and "
            f"255, all of '{absent}' is 255, which is void. A score of 100 would be meaningless"
        )
        return [Finding(level, where, text, void_advice(dataset, absent))]
    return []


def void_advice(dataset: Dataset, absent: str = "") -> str:
    """What to type if a class is taken for void.

    Args:
        dataset: of the labels.
        absent: name of the class, if known.
    """
    if not isinstance(dataset, Folder):
        return "Repair the masks, or declare their values with data.name=folder."
    if dataset.spec.masks == "colors":
        return "Compare `colors` and `ignore_colors` in data.spec with the colours of the masks."
    if absent:
        return (
            f"Declare it in data.spec: {{name: {absent}, ids: [255]}} and `ignore: []`; or, if "
            "255 is void, add masks that show the class."
        )
    return "Compare `ids` and `ignore` in data.spec with the values of the masks."
