"""A first description of a folder of images and masks: spec, splits, sizes, counts."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segkd import registry
from segkd.data.class_files import Named, find_class_file
from segkd.data.class_guess import Guess, guess_classes, means_void
from segkd.data.layout import (
    Declared,
    Endings,
    Layout,
    common_endings,
    declare,
    declare_images,
    find_layout,
)
from segkd.data.mask_values import Values, read_values, without_misfits
from segkd.data.paired import PairedDataset
from segkd.data.reading import header_size, listed, wrong_values
from segkd.data.splits import divide
from segkd.errors import DataError, SegKDError

KNOWN = ("cityscapes", "camvid", "voc", "ade20k", "coco_stuff")
_MOST_SIZES = 2000  # images whose size is read
_TRIED = 40  # masks of a known set
_SEEN = 0.6  # share of the classes of a known set that must be in them
_FEWEST = 2  # pairs
Size = tuple[int, int]
Bar = Callable[[int, int], None]


@dataclass
class Draft:
    """What a folder holds, and how a config names it.

    Attributes:
        root: the folder.
        known: name of the dataset of segkd whose files these are; empty for any other set.
        spec: keys of ``data.spec``; empty for a known set.
        lists: lines of list files, by split.
        guess: classes; None for a known set, and without masks.
        counts: number of images by split; split ``unlabeled`` are images without masks.
        sizes: number of images by (height, width).
        notes: what was found, as lines.
        how: how the splits were made.
        named: classes of a file beside the images, if there are no masks.
        classes: names of the classes, empty without masks.
    """

    root: Path
    known: str = ""
    spec: dict[str, Any] = field(default_factory=dict)
    lists: dict[str, tuple[str, ...]] = field(default_factory=dict)
    guess: Guess | None = None
    counts: dict[str, int] = field(default_factory=dict)
    sizes: Counter[Size] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    how: str = ""
    named: list[Named] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)

    @property
    def labelled(self) -> bool:
        """Whether there are masks."""
        return bool(self.counts.get("train"))

    @property
    def size(self) -> Size:
        """The most frequent (height, width)."""
        return self.sizes.most_common(1)[0][0]


def draft(
    root: Path,
    *,
    images: Path | None = None,
    masks: Path | None = None,
    plain: bool = False,
    progress: Bar = lambda done, total: None,
) -> Draft:
    """Looks at a folder.

    Args:
        root: the folder; its files are only read.
        images, masks: folders below it, where names alone do not tell the two apart.
        plain: do not ask whether it is one of the sets that segkd knows.
        progress: called with (done, total) masks.

    Raises:
        DataError: no such folder, no images, or masks that cannot be used; says what to do.
    """
    root = root.expanduser().resolve()
    layout = find_layout(root, images, masks)
    found = Draft(root, notes=list(layout.notes))
    found.sizes = _sizes(layout.images)
    named = find_class_file(root)
    if not plain and images is None and layout.labelled:
        known = known_set(root)
        if known and not _names_others(known, named, found.notes):
            _describe_known(found, known)
            return found
    found.notes += without_misfits(layout)
    _tell_leftovers(layout, found.notes)
    if not layout.labelled:
        _without_masks(found, layout, named)
        return found
    pairs = [pair for own in layout.pairs.values() for pair in own]
    if len(pairs) < _FEWEST:
        raise DataError(
            f"{root}: there is one image with a mask, {pairs[0][0]}, but two are the least: one "
            "for training, one for validation"
        )
    values = read_values([mask for _, mask in pairs], progress)
    endings = common_endings(pairs)
    file, names = (named[0], named[1]) if named else (None, [])
    guess = guess_classes(values, names, file, endings.mask if endings else "")
    found.guess, found.classes = guess, guess.names
    found.notes += guess.doubts
    if values.read < values.of:
        found.notes.append(f"values are from {values.read} of {values.of} masks, evenly spaced")
    splits, found.how = divide(
        layout, lambda pair: values.by_mask.get(pair[1], frozenset()), found.notes
    )
    _declare(found, layout, splits, endings, values)
    return found


def known_set(root: Path) -> str:
    """The name of the dataset of segkd whose tree and classes a folder has; empty for none."""
    for name in KNOWN:
        kind = registry.datasets.get(name)
        try:
            config = kind.Config.model_validate({"name": name, "root": str(root)})
            sets = [kind(config, split) for split in (config.train_split, config.val_split)]
            if all(isinstance(one, PairedDataset) and _is_that(one) for one in sets):
                return name
        except (SegKDError, OSError):
            continue
    return ""


def _is_that(dataset: PairedDataset) -> bool:
    """Whether masks exist, hold the classes of this set only, and most of them."""
    number = len(dataset.classes)
    seen = np.zeros(number, bool)
    chosen = np.linspace(0, len(dataset) - 1, min(_TRIED, len(dataset))).astype(int)
    for index in chosen:
        mask = dataset.pairs[index][1]
        if mask is None or not mask.is_file():
            return False
        label = dataset._read_label(mask)
        if wrong_values(label, number, dataset.ignore_index):
            return False
        seen[np.unique(label[label != dataset.ignore_index])] = True
    return len(chosen) > 0 and bool(seen.mean() >= min(_SEEN, 20 / number))


def _names_others(known: str, named: tuple[Path, list[Named]] | None, notes: list[str]) -> bool:
    """Whether a file names classes of the masks that are not those of a known set; notes tell it.

    A longer list, like that of all of Cityscapes' labels, cannot be of masks that have these ids.
    """
    if named is None:
        return False
    classes = {_bare(name) for name in registry.datasets.get(known).classes}
    others = [
        one.name for one in named[1] if not means_void(one.name) and _bare(one.name) not in classes
    ]
    if not others or len(named[1]) > len(classes) + 1:
        return False
    notes.append(
        f"files lie as those of {known}, but {named[0]} names {listed(others, 3)}: taken for a set "
        f"of its own. If the classes are {known}'s, remove that file"
    )
    return True


def _bare(name: str) -> str:
    """A name without what its spellings differ in."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _describe_known(found: Draft, name: str) -> None:
    kind = registry.datasets.get(name)
    config = kind.Config.model_validate({"name": name, "root": str(found.root)})
    found.known, found.classes = name, list(kind.classes)
    for split, own in (("train", config.train_split), ("val", config.val_split)):
        found.counts[split] = len(kind(config, own))
    found.how = f"those of {name}"
    found.notes.append(f"files and classes are those of {name}: segkd reads it as `name: {name}`")


def _sizes(images: Sequence[Path]) -> Counter[Size]:
    """Sizes of images, of an evenly spaced part of many. Raises DataError if none can be read."""
    found: Counter[Size] = Counter()
    broken: list[str] = []
    for path in images[:: max(1, -(-len(images) // _MOST_SIZES))]:
        try:
            found[header_size(path)] += 1
        except SegKDError as error:
            broken.append(str(error))
    if not found:
        raise DataError(f"no image can be read: {broken[0]}")
    return found


def _tell_leftovers(layout: Layout, notes: list[str]) -> None:
    def tell(number: int, what: str, paths: Sequence[Path], then: str = "") -> None:
        if number:
            names = listed([path.relative_to(layout.root).as_posix() for path in paths], 3)
            notes.append(f"{number} {what}{then}: {names}")

    if layout.labelled:
        bare = [path for own in layout.bare.values() for path in own]
        tell(len(bare), "images have no mask", bare)
    tell(len(layout.alone), "masks have no image", layout.alone, " and are not used")
    tell(len(layout.ignored), "files are neither images nor class masks", layout.ignored)


def _without_masks(found: Draft, layout: Layout, named: tuple[Path, list[Named]] | None) -> None:
    found.counts = {"unlabeled": len(layout.images)}
    found.notes.append(f"{len(layout.images)} images, no masks: a teacher is needed")
    if layout.alone:
        raise DataError(
            f"{layout.root}: none of the {len(layout.alone)} masks belongs to one of the "
            f"{len(layout.images)} images by name, e.g. {layout.alone[0]} and "
            f"{layout.images[0]}. Rename them alike, or say which folder is which: --images DIR "
            "--masks DIR"
        )
    if named:
        found.named = named[1]
        found.notes.append(f"{len(named[1])} classes are named in {named[0]}")


def _declare(
    found: Draft,
    layout: Layout,
    splits: dict[str, list[tuple[Path, Path]]],
    endings: Endings | None,
    values: Values,
) -> None:
    """The spec, and its list files."""
    guess = found.guess
    assert guess is not None  # set before
    bare = [path for own in layout.bare.values() for path in own]
    root = layout.root
    parts: dict[str, Declared] = {
        split: declare(root, pairs, endings) for split, pairs in splits.items()
    }
    if bare:
        parts["unlabeled"] = declare_images(root, bare, endings.image if endings else "")
    found.counts = {split: len(pairs) for split, pairs in splits.items()}
    if bare:
        found.counts["unlabeled"] = len(bare)
    found.lists = {split: part.lines for split, part in parts.items() if part.lines}
    spec: dict[str, Any] = {"masks": guess.masks, "classes": guess.classes}
    if guess.masks == "colors":
        spec["ignore_colors"] = [list(color) for color in guess.ignore_colors]
    else:
        spec["ignore"] = guess.ignore
    spec["undeclared"] = guess.undeclared
    if endings is not None:
        spec["image_ending"], spec["mask_ending"] = endings.image, endings.mask
    spec["splits"] = {
        split: {"images": part.images, **({"masks": part.masks} if part.masks else {})}
        for split, part in parts.items()
    }
    found.spec = spec
    if len(found.sizes) > 1:
        found.notes.append(f"images have {len(found.sizes)} sizes")
