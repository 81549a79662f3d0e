"""Images without labels: folders of images, datasets without their labels, and joined sets.

Methods use all pixels of these images, task losses none: their samples have no label and are False
in ``Batch.labelled``.
"""

import logging
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from segkd import registry
from segkd.data.base import DataConfig, Dataset, Sample
from segkd.data.files import neighbour
from segkd.data.label_maps import without_label_maps
from segkd.data.lane_files import below_the_cut
from segkd.data.lists import choose, find_list, image_lines, require_distinct
from segkd.data.paired import IMAGE_ENDINGS, images_below
from segkd.data.reading import read_image, repair_of_missing
from segkd.errors import ConfigError, DataError, folder_named_by

_log = logging.getLogger(__name__)
_LOOKED_AT = 8  # images without a label


class _Like(Dataset):
    """A dataset with the classes and the task of another one."""

    def __init__(self, like: Dataset, split: str) -> None:
        super().__init__(like.config, split)
        self.name, self.task = getattr(like, "name", type(like).__name__), like.task
        self.classes, self.palette, self.ignore_index = (
            like.classes,
            like.palette,
            like.ignore_index,
        )


class ImageFolder(_Like):
    """All images below a folder, in natural order (2 before 10), or those of a list.

    Args:
        root: the folder, searched recursively.
        like: the training set; its classes and ``cut_top`` apply.
        names: text file with one image per line, as a path below ``root`` with or without ending.
        rows: those that are kept, as shares of the height; None: all below ``cut_top``.

    Raises:
        DataError: no image, or one of the list is missing.
    """

    def __init__(
        self,
        root: Path,
        like: Dataset,
        names: Path | None = None,
        rows: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(like, str(root))
        self.root, self.rows = root.expanduser(), rows
        found = images_below(self.root) if self.root.is_dir() else []
        if not found:
            kinds = ", ".join(IMAGE_ENDINGS)
            what = "no image in this folder" if self.root.is_dir() else "no such folder"
            raise DataError(
                f"data.unlabeled.root: there is {what}: {self.root}. Images end in {kinds}, in "
                "any subfolder"
            )
        if names is None:
            found = without_label_maps(found, self.root)
            self.paths = sorted(found, key=lambda path: natural(path.relative_to(self.root)))
        else:
            inside = [path.relative_to(self.root) for path in found]
            by_path = {path.as_posix(): path for path in inside}
            where = find_list(names, self.root, "data.unlabeled.list")
            lines = image_lines(where)
            require_distinct(where, [line for line in lines if line not in by_path], inside)
            by_stem = {path.with_suffix("").as_posix(): path for path in inside}
            chosen = choose(where, lines, by_stem | by_path, self.root)
            self.paths = [self.root / path for path in chosen]
        self.unlabelled = len(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Sample:
        """The image (H, W, 3), with the rows that are kept. Raises DataError."""
        path = self.paths[index]
        image = read_image(path)
        if self.rows is None:
            image = below_the_cut(image, getattr(self.config, "cut_top", 0), path)
        else:
            top, end = (round(share * len(image)) for share in self.rows)
            top = min(top, len(image) - 1)  # one row at least
            image = image[top : max(end, top + 1)]
        return Sample(image, None, path.name)

    def files(self, index: int) -> tuple[Path, None]:
        """The path of the image, and None."""
        return self.paths[index], None


class Images(_Like):
    """A sequence of images (H, W, 3) uint8 RGB, or of pairs whose labels are ignored.

    Args:
        images: supports ``len`` and indexing.
        like: the training set, whose classes apply.

    Raises:
        DataError: no images.
    """

    def __init__(self, images: Sequence[Any], like: Dataset) -> None:
        super().__init__(like, "unlabeled_set")
        self.images, self.unlabelled = images, len(images)
        if len(images) == 0:
            raise DataError("unlabeled_set: has no images. Give at least one")

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Sample:
        """The image at an index."""
        image = self.images[index]
        if isinstance(image, tuple | list) and len(image) == 2:
            image = image[0]
        return Sample(np.asarray(image), None, f"unlabelled image {index}")


class WithoutLabels(_Like):
    """A dataset whose labels are not read.

    Args:
        dataset: of the images.
        like: a set whose classes apply; default: ``dataset``.
    """

    def __init__(self, dataset: Dataset, like: Dataset | None = None) -> None:
        super().__init__(like or dataset, getattr(dataset, "split", ""))
        self.dataset, self.unlabelled = dataset, len(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int) -> Sample:
        """The image without its label. Raises DataError."""
        return self.dataset.read_unlabelled(index)

    def files(self, index: int) -> tuple[Path, None] | None:
        """The path of the image, and None; None for sets without files."""
        files = self.dataset.files(index)
        return None if files is None else (files[0], None)


class SomeLabels(_Like):
    """A dataset in which images without a label file are unlabelled (``data.labels: optional``).

    Args:
        dataset: of images and labels.
    """

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset, getattr(dataset, "split", ""))
        self.dataset = dataset
        files = [dataset.files(index) for index in range(len(dataset))]
        self._bare = {index for index, pair in enumerate(files) if without_label(pair)}
        self.unlabelled = len(self._bare)
        _tell_other_endings([pair for pair in files if pair is not None])

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int) -> Sample:
        """The image, with its label if there is one. Raises DataError."""
        bare = index in self._bare
        return self.dataset.read_unlabelled(index) if bare else self.dataset.read(index)

    def files(self, index: int) -> tuple[Path, Path | None] | None:
        """Paths of image and label, the latter only if it exists."""
        files = self.dataset.files(index)
        return (files[0], None) if files is not None and index in self._bare else files


class Joined(_Like):
    """The images of a training split, followed by unlabelled ones.

    Args:
        main: the training split.
        other: the unlabelled images; index i of it is ``len(main) + i`` here.
        share: of unlabelled images in a step.
    """

    def __init__(self, main: Dataset, other: Dataset, share: float) -> None:
        super().__init__(main, getattr(main, "split", ""))
        self.main, self.other, self.share = main, other, share
        self.unlabelled = main.unlabelled + len(other)

    def __len__(self) -> int:
        return len(self.main) + len(self.other)

    def per_step(self, images: int) -> int:
        """Number of unlabelled images among those of a step; at least one of each kind."""
        wanted = int(Fraction(str(self.share)) * images + Fraction(1, 2))
        return min(max(wanted, 1), images - 1)

    def read(self, index: int) -> Sample:
        """A sample of one of the sets. Raises DataError."""
        dataset, own = self._at(index)
        return dataset.read(own)

    def files(self, index: int) -> tuple[Path, Path | None] | None:
        """Paths of image and label in one of the sets."""
        dataset, own = self._at(index)
        return dataset.files(own)

    def replacement(self, index: int, rng: np.random.Generator) -> int:
        """The index of a random image of the same set."""
        first = len(self.main)
        if index < first:
            return int(rng.integers(first))
        return first + int(rng.integers(len(self.other)))

    def _at(self, index: int) -> tuple[Dataset, int]:
        """The set of an image, and its index there."""
        first = len(self.main)
        return (self.main, index) if index < first else (self.other, index - first)


def without_label(files: tuple[Path, Path | None] | None) -> bool:
    """Whether an image has no label file; a link to a missing one is a file, and an error."""
    if files is None:
        return False
    label = files[1]
    return label is None or not (label.is_file() or label.is_symlink())


def _tell_other_endings(files: Sequence[tuple[Path, Path | None]]) -> None:
    """Logs if missing labels may be there under another ending, so that nothing is read of them."""
    images = {image for image, _ in files}
    bare = [pair[1] for pair in files if pair[1] is not None and without_label(pair)]
    for label in bare[:_LOOKED_AT]:
        other = neighbour(label, images)
        if other.lower().endswith(IMAGE_ENDINGS):
            _log.warning(
                "data.labels=optional: %d images have no label, e.g. no %s. %s",
                *(len(bare), label, repair_of_missing(label, known=images)),
            )
            return


def labels_as_told(dataset: Dataset, config: DataConfig) -> Dataset:
    """The training split with labels according to ``data.labels``."""
    if config.labels == "none":
        return WithoutLabels(dataset)
    return SomeLabels(dataset) if config.labels == "optional" else dataset


def unlabelled_config(config: DataConfig) -> DataConfig | None:
    """The block ``data:`` of the dataset under ``data.unlabeled``; None for a plain folder.

    Raises:
        ConfigError: there is no such dataset.
        ValidationError: an unknown key, or a wrong value.
    """
    block = config.unlabeled
    if block is None or not block.of_dataset:
        return None
    name = block.name or config.name
    keys = dict(block.model_extra or {}) | ({} if block.root is None else {"root": block.root})
    if name == config.name:  # the same dataset: its keys are the defaults
        keys = config.model_copy(update={"unlabeled": None}).model_dump() | keys
    return registry.datasets.get(name).Config.model_validate({**keys, "name": name})


def open_unlabelled(config: DataConfig, like: Dataset) -> Dataset:
    """The images under ``data.unlabeled``, with the classes of ``like``.

    Raises:
        SegKDError: there are none, or the block does not name any.
    """
    block, own = config.unlabeled, unlabelled_config(config)
    if own is not None and block is not None and block.split is not None:
        with folder_named_by("data.unlabeled.root=FOLDER"):
            dataset = registry.datasets.get(own.name)(own, block.split)
        if len(dataset) == 0:
            raise DataError(f"data.unlabeled: {own.name}, split '{block.split}', has no images")
        return WithoutLabels(dataset, like)
    if block is None or block.root is None:
        raise ConfigError(
            "data.unlabeled: no images are named. Add `root: FOLDER` (any images), or `split` "
            "(of this dataset, or of the dataset `name`)"
        )
    return ImageFolder(block.root, like, block.list, block.rows)


def joined(
    main: Dataset, other: Dataset, share: float, batch_size: int, micro_steps: int
) -> Joined:
    """Both sets, checked for a batch size.

    Args:
        main: the training split.
        other: the unlabelled images.
        share: of unlabelled images in a step.
        batch_size: images per step, over all processes.
        micro_steps: number of processes times accumulated micro-steps.

    Raises:
        ConfigError: a micro-step would have images of only one kind.
    """
    both = Joined(main, other, share)
    unlabelled = both.per_step(batch_size)
    fewest = min(unlabelled, batch_size - unlabelled)
    if batch_size < 2 or fewest < micro_steps:
        raise ConfigError(
            f"data.unlabeled.share: {share:g} of data.batch_size={batch_size} in "
            f"{micro_steps} micro-step(s) are {unlabelled} unlabelled and "
            f"{batch_size - unlabelled} other images: each micro-step needs one of both. Raise "
            "data.batch_size, change the share, or set it to 0 or 1 for images of one kind"
        )
    return both


def has_labels(dataset: Dataset) -> bool:
    """Whether any image has a label; sets without this information are read until one has."""
    if isinstance(dataset, Joined):
        return has_labels(dataset.main)
    if dataset.unlabelled:
        return dataset.unlabelled < len(dataset)
    for index in range(len(dataset)):
        try:
            if dataset.read(index).label is not None:
                return True
        except DataError:  # reported when the image is used
            continue
    return False


def in_both(one: Dataset, other: Dataset) -> list[str]:
    """Image files that are in both sets."""
    first = _image_files(one)
    return sorted(str(path) for path in _image_files(other) & first) if first else []


def natural(path: Path) -> list[tuple[bool, int, str]]:
    """A sort key that orders numbers in names by value: 2 before 10."""
    parts = [part for part in re.split(r"(\d+)", path.as_posix().lower()) if part]
    # Not `isdigit`: ² is a digit, but no number.
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def _image_files(dataset: Dataset) -> set[Path]:
    pairs = (dataset.files(index) for index in range(len(dataset)))
    return {pair[0].resolve() for pair in pairs if pair is not None}
