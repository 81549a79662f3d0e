"""Checks every sample of a dataset and reports errors and doubtful files."""

import glob
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from segkd.data.base import Dataset, Labels, Sample
from segkd.data.duplicates import fingerprint, listed_twice
from segkd.data.files import is_litter
from segkd.data.findings import Finding
from segkd.data.lane_base import is_lane_set
from segkd.data.lane_check import LaneCheck
from segkd.data.paired import PairedDataset
from segkd.data.reading import (
    SampleError,
    check_sample,
    detail_doubts,
    image_doubts,
    image_name,
    label_name,
    mask_doubts,
)
from segkd.data.unlabeled import without_label
from segkd.errors import DataError

Progress = Callable[[int, int], None]  # (done, total)


@dataclass
class CheckReport:
    """The result of ``check_dataset``.

    Attributes:
        dataset: name of the set.
        split: name of the split.
        images: number of images.
        unlabelled: number of images without annotation.
        classes: K names.
        findings: errors and warnings.
        pixels: (K,) int64 labelled pixels of each class.
        ignored: number of void pixels.
        sizes: number of images by (height, width).
        fingerprints: file of each distinct image by the fingerprint of its pixels.
        labelled: whether labels were read, ``data.labels`` permitting.
        exist: of lane sets, (L,) number of images in which each slot has a lane; else None.
    """

    dataset: str
    split: str
    images: int
    classes: tuple[str, ...]
    pixels: np.ndarray
    unlabelled: int = 0
    ignored: int = 0
    findings: list[Finding] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    fingerprints: dict[str, str] = field(default_factory=dict)
    labelled: bool = True
    exist: np.ndarray | None = None

    @property
    def errors(self) -> list[Finding]:
        """Findings that are errors."""
        return [finding for finding in self.findings if finding.level == "error"]

    @property
    def ok(self) -> bool:
        """Whether there are no errors; warnings are allowed."""
        return not self.errors

    @property
    def shares(self) -> np.ndarray:
        """(K,) share of each class in the labelled pixels; 0 without labelled pixels."""
        return self.pixels / max(1, self.pixels.sum())

    @property
    def ignore_share(self) -> float:
        """Share of void pixels in the masks."""
        return self.ignored / max(1, self.ignored + int(self.pixels.sum()))


def check_dataset(
    dataset: Dataset, *, labels: Labels = "required", progress: Progress | None = None
) -> CheckReport:
    """Reads every sample once and checks files, sizes and values.

    Args:
        dataset: is read as in training and evaluation.
        labels: ``data.labels`` of a training split.
        progress: called after each image with (done, total).
    """
    report = CheckReport(
        dataset=getattr(dataset, "name", type(dataset).__name__),
        split=str(getattr(dataset, "split", "")),
        images=len(dataset),
        classes=tuple(dataset.classes),
        pixels=np.zeros(len(dataset.classes), np.int64),
        labelled=labels != "none",
    )
    lanes = LaneCheck(dataset) if is_lane_set(dataset) and labels != "none" else None
    for index in range(len(dataset)):
        bare = labels == "none" or (labels == "optional" and without_label(dataset.files(index)))
        report.findings += doubts(dataset, index, label=not bare)
        try:
            sample = dataset.read_unlabelled(index) if bare else dataset.read(index)
            check_sample(dataset, index, sample)
            report.findings += lanes.look(index, sample) if lanes else []
        except DataError as error:
            report.findings.append(_broken(error, dataset, index))
        else:
            _count(report, dataset, index, sample)
        if progress is not None:
            progress(index + 1, len(dataset))
    if lanes:
        report.exist = lanes.exist
        report.findings += lanes.about_the_set()
    elif dataset.task != "lanes":
        report.findings += _masks_without_image(dataset)
    report.findings += _about_the_set(report, dataset)
    return report


def doubts(dataset: Dataset, index: int, *, label: bool = True) -> list[Finding]:
    """Warnings about the readable files of one image; unreadable ones are reported on reading.

    Args:
        dataset: of the image.
        index: of the image.
        label: whether its label is read.
    """
    files = dataset.files(index)
    if files is None:
        return []
    found: list[Finding] = []
    looks: list[tuple[Path, Callable[[Path], str], str]] = [
        (files[0], image_doubts, "Store 8 bits, or scale the values to all 16."),
        (files[0], detail_doubts, "Fetch it again."),
    ]
    if label and dataset.task != "lanes" and files[1] is not None:
        looks.append((files[1], mask_doubts, "Write masks as PNG."))
    for file, look, repair in looks:
        try:
            doubt = look(file)
        except DataError:
            continue
        what = "the mask" if look is mask_doubts else "the image"
        found += [Finding("warning", str(file), f"{what} {doubt}", repair)] if doubt else []
    return found


def _broken(error: DataError, dataset: Dataset, index: int) -> Finding:
    if isinstance(error, SampleError):
        return Finding("error", error.file, error.text, error.repair)
    files = dataset.files(index)
    return Finding("error", "" if files is None else str(files[0]), str(error), "")


def _count(report: CheckReport, dataset: Dataset, index: int, sample: Sample) -> None:
    height, width = sample.image.shape[:2]
    report.sizes[height, width] += 1
    mark, name = fingerprint(sample.image), image_name(dataset, index, sample)
    first = report.fingerprints.setdefault(mark, name)
    if first != name and (sample.image != sample.image[:1, :1]).any():  # uniform images may recur
        text = f"the same image as {first}"
        repair = "Remove one of them: it counts twice."
        report.findings.append(Finding("warning", name, text, repair))
    if sample.label is None:
        report.unlabelled += 1
        return
    label = sample.label[sample.label != dataset.ignore_index]
    report.pixels += np.bincount(label, minlength=len(report.classes))
    report.ignored += sample.label.size - label.size
    if label.size == 0:
        report.findings.append(
            Finding(
                "warning",
                label_name(dataset, index, sample),
                "all pixels are void",
                f"Annotate or remove {image_name(dataset, index, sample)}.",
            )
        )


def _masks_without_image(dataset: Dataset) -> Iterator[Finding]:
    if not isinstance(dataset, PairedDataset) or dataset.shared_folders:
        return
    masks = {mask for _, mask in dataset.pairs if mask is not None}
    for folder in sorted({mask.parent for mask in masks}):
        for path in sorted(folder.glob(f"*{glob.escape(dataset.mask_ending)}")):
            if path not in masks and not is_litter(path.name):
                repair = "Fetch the image, or remove the mask; ignore this if a list excludes it."
                yield Finding("warning", str(path), "a mask without an image", repair)


def _about_the_set(report: CheckReport, dataset: Dataset) -> Iterator[Finding]:
    where = str(getattr(dataset, "root", ""))
    absent = [
        name for name, n in zip(report.classes, report.pixels.tolist(), strict=True) if n == 0
    ]
    if absent and report.labelled and report.unlabelled < report.images:
        yield Finding(
            "warning",
            where,
            f"split '{report.split}' has no pixel of {', '.join(absent)}",
            "Check the mapping of ids; scores of these classes are meaningless here."
            if report.exist is None
            else "These lanes cannot be learnt from it, nor scored on it.",
        )
    yield from listed_twice(dataset)
    if report.labelled and 0 < report.unlabelled < report.images:
        text = f"{report.unlabelled} of {report.images} images have no annotation"
        yield Finding("warning", where, text, "They count as void in training.")
    config = dataset.config
    if len(report.sizes) > 1 and config.resize is None and config.crop is None:
        shown = ", ".join(f"{h}x{w} ({n})" for (h, w), n in report.sizes.most_common(5))
        text = f"images differ in size: {shown}"
        yield Finding("warning", where, text, "Set data.crop or data.resize to train on them.")
    yield from _about_the_crop(report, dataset)


def _about_the_crop(report: CheckReport, dataset: Dataset) -> Iterator[Finding]:
    """An error for images that ``data.pad=false`` refuses."""
    config = dataset.config
    if config.crop is None or config.pad or config.resize is not None:
        return
    for (height, width), number in sorted(report.sizes.items()):
        small = round(height * config.scale[0]), round(width * config.scale[0])
        if small[0] < config.crop[0] or small[1] < config.crop[1]:
            crop = f"{config.crop[0]}x{config.crop[1]}"
            text = f"{number} images of {height}x{width}, scaled by data.scale, are below {crop}"
            repair = "Set data.pad=true, a smaller data.crop, or a larger data.scale."
            yield Finding("error", str(Path(getattr(dataset, "root", ""))), text, repair)
