"""Images without labels: folders of them, datasets without their labels, both kinds together.

Methods learn from all pixels of these images, task losses from none: their samples have no label,
and ``Batch.labelled`` says so.
"""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from segkd import registry
from segkd.data.base import DataConfig, Dataset, Sample
from segkd.data.lists import choose, find_list, image_lines
from segkd.data.paired import IMAGE_ENDINGS, images_below
from segkd.data.reading import read_image, size_text
from segkd.errors import ConfigError, DataError


class _Like(Dataset):
    """A set with the classes and the task of another one."""

    def __init__(self, like: Dataset, split: str) -> None:
        super().__init__(like.config, split)
        self.name, self.task = getattr(like, "name", type(like).__name__), like.task
        self.classes, self.palette, self.ignore_index = (
            like.classes,
            like.palette,
            like.ignore_index,
        )


class ImageFolder(_Like):
    """All images below a folder, in natural order (2 before 10), or those that a list chooses.

    Args:
        root: the folder; subfolders are searched.
        like: the set beside which these images are trained on; its ``cut_top`` holds here too.
        names: text file with one image per line, as a path below ``root``; its ending may be
            left out.

    Raises:
        DataError: there is no such image.
    """

    def __init__(self, root: Path, like: Dataset, names: Path | None = None) -> None:
        super().__init__(like, str(root))
        self.root = root.expanduser()
        found = images_below(self.root) if self.root.is_dir() else []
        if not found:
            kinds = ", ".join(IMAGE_ENDINGS)
            what = "no image in this folder" if self.root.is_dir() else "no such folder"
            raise DataError(
                f"data.unlabeled.root: there is {what}: {self.root}. Images end in {kinds}, in "
                "any subfolder"
            )
        if names is None:
            self.paths = sorted(found, key=lambda path: natural(path.relative_to(self.root)))
        else:
            inside = [path.relative_to(self.root) for path in found]
            by_name = {path.with_suffix("").as_posix(): path for path in inside}
            by_name |= {path.as_posix(): path for path in inside}
            where = find_list(names, self.root, "data.unlabeled.list")
            chosen = choose(where, image_lines(where), by_name, self.root)
            self.paths = [self.root / path for path in chosen]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def unlabelled(self) -> int:
        return len(self)

    def read(self, index: int) -> Sample:
        path, cut_top = self.paths[index], getattr(self.config, "cut_top", 0)
        image = read_image(path)
        if cut_top >= image.shape[0]:
            raise DataError(
                f"data.cut_top={cut_top} leaves nothing of {path}, which is {size_text(image)}: "
                f"set it to less than {image.shape[0]}, or take other images"
            )
        return Sample(image[cut_top:], None, path.name)

    def files(self, index: int) -> tuple[Path, None]:
        return self.paths[index], None


class Images(_Like):
    """A sequence of images (H, W, 3) uint8 RGB, or of pairs whose labels are ignored."""

    def __init__(self, images: Sequence, like: Dataset) -> None:
        super().__init__(like, "unlabeled_set")
        self.images = images
        if len(images) == 0:
            raise DataError("unlabeled_set: has no images. Give at least one")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def unlabelled(self) -> int:
        return len(self)

    def read(self, index: int) -> Sample:
        image = self.images[index]
        if isinstance(image, tuple | list) and len(image) == 2:
            image = image[0]
        return Sample(np.asarray(image), None, f"unlabelled image {index}")


class WithoutLabels(_Like):
    """A dataset whose labels are not read. ``like`` has the classes; default: the set itself."""

    def __init__(self, dataset: Dataset, like: Dataset | None = None) -> None:
        super().__init__(like or dataset, getattr(dataset, "split", ""))
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def unlabelled(self) -> int:
        return len(self)

    def read(self, index: int) -> Sample:
        return self.dataset.read_unlabelled(index)

    def files(self, index: int) -> tuple[Path, None] | None:
        files = self.dataset.files(index)
        return None if files is None else (files[0], None)


class SomeLabels(_Like):
    """A dataset in which images without a label file are unlabelled (``data.labels: optional``)."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset, getattr(dataset, "split", ""))
        self.dataset = dataset
        files = [dataset.files(index) for index in range(len(dataset))]
        self._bare = {
            index
            for index, pair in enumerate(files)
            if pair is not None and (pair[1] is None or not pair[1].is_file())
        }

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def unlabelled(self) -> int:
        return len(self._bare)

    def read(self, index: int) -> Sample:
        bare = index in self._bare
        return self.dataset.read_unlabelled(index) if bare else self.dataset.read(index)

    def files(self, index: int) -> tuple[Path, Path | None] | None:
        files = self.dataset.files(index)
        return (files[0], None) if index in self._bare else files


class Joined(_Like):
    """Images of a training split, and after them unlabelled ones.

    Attributes:
        main, other: the two sets; index i of ``other`` is ``len(main) + i`` here.
        share: of the unlabelled set in a step.
    """

    def __init__(self, main: Dataset, other: Dataset, share: float) -> None:
        super().__init__(main, getattr(main, "split", ""))
        self.main, self.other, self.share = main, other, share

    def __len__(self) -> int:
        return len(self.main) + len(self.other)

    @property
    def unlabelled(self) -> int:
        return self.main.unlabelled + len(self.other)

    def per_step(self, images: int) -> int:
        """How many of a step's images are of the unlabelled set: at least one of each kind."""
        wanted = int(Fraction(str(self.share)) * images + Fraction(1, 2))
        return min(max(wanted, 1), images - 1)

    def read(self, index: int) -> Sample:
        return self._at(index, lambda dataset, i: dataset.read(i))

    def files(self, index: int) -> tuple[Path, Path | None] | None:
        return self._at(index, lambda dataset, i: dataset.files(i))

    def replacement(self, index: int, rng: np.random.Generator) -> int:
        """The index of a random image of the same set."""
        first = len(self.main)
        if index < first:
            return int(rng.integers(first))
        return first + int(rng.integers(len(self.other)))

    def _at(self, index: int, call: Callable):
        first = len(self.main)
        return call(self.main, index) if index < first else call(self.other, index - first)


def labels_as_told(dataset: Dataset, config: DataConfig) -> Dataset:
    """The training split as ``data.labels`` wants it read."""
    if config.labels == "none":
        return WithoutLabels(dataset)
    return SomeLabels(dataset) if config.labels == "optional" else dataset


def unlabelled_config(config: DataConfig) -> DataConfig | None:
    """The block ``data:`` of the dataset under ``data.unlabeled``; None for a plain folder.

    Raises:
        ConfigError: there is no such dataset.
        ValidationError: a key that the dataset does not have, or a wrong value.
    """
    block = config.unlabeled
    if block is None or not block.of_dataset:
        return None
    name = block.name or config.name
    keys = dict(block.model_extra or {}) | ({} if block.root is None else {"root": block.root})
    if name == config.name:  # the same dataset: its own keys hold unless others are given
        keys = config.model_copy(update={"unlabeled": None}).model_dump() | keys
    return registry.datasets.get(name).Config.model_validate({**keys, "name": name})


def open_unlabelled(config: DataConfig, like: Dataset) -> Dataset:
    """The images under ``data.unlabeled``, with the classes of ``like``.

    Raises:
        SegKDError: there are none, or the block does not say which.
    """
    block, own = config.unlabeled, unlabelled_config(config)
    if own is not None:
        dataset = registry.datasets.get(own.name)(own, block.split)
        if len(dataset) == 0:
            raise DataError(f"data.unlabeled: {own.name}, split '{block.split}', has no images")
        return WithoutLabels(dataset, like)
    if block.root is None:
        raise ConfigError(
            "data.unlabeled: says not which images. Add `root: FOLDER` (any images), or `split` "
            "(of this dataset, or of the dataset `name`)"
        )
    return ImageFolder(block.root, like, block.list)


def joined(
    main: Dataset, other: Dataset, share: float, batch_size: int, micro_steps: int
) -> Joined:
    """Both sets, if the images of a step can be shared as wanted.

    Raises:
        ConfigError: a (micro-)step would have images of one kind alone.
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
    """Whether any image has a label. Sets that do not say so are read until one has."""
    if isinstance(dataset, Joined):
        return has_labels(dataset.main)
    if dataset.unlabelled:
        return dataset.unlabelled < len(dataset)
    for index in range(len(dataset)):
        try:
            if dataset.read(index).label is not None:
                return True
        except DataError:  # told when the image's turn has come
            continue
    return False


def in_both(one: Dataset, other: Dataset) -> list[str]:
    """The image files that two sets have in common."""
    first = _image_files(one)
    return sorted(str(path) for path in _image_files(other) & first) if first else []


def natural(path: Path) -> list[tuple[bool, int, str]]:
    """Sorts numbers inside of names by value: 2 before 10."""
    parts = re.split(r"(\d+)", path.as_posix().lower())
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts if part]


def _image_files(dataset: Dataset) -> set[Path]:
    pairs = (dataset.files(index) for index in range(len(dataset)))
    return {pair[0].resolve() for pair in pairs if pair is not None}
