"""Finds pairs of images and masks in a folder, however its files are arranged and named."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from segkd.data.files import same_name
from segkd.data.names_of_files import Reading, Role, bare_stem, read_path, role_of_stem
from segkd.data.paired import IMAGE_ENDINGS, images_below
from segkd.data.reading import packed_colors, read_mask
from segkd.errors import DataError, SegKDError

SPLITS = ("train", "val", "test")
_GIF = ".gif"  # of masks, as in Carvana's set
_FEW_VALUES = 64  # of a mask; photographs have more
_VOTERS = 50  # masks that tell which letters are added to all names
_LOOKED_AT = 3  # files of a folder, where names say nothing
Pair = tuple[Path, Path]


@dataclass
class Layout:
    """The files of a folder, by split; the split is empty where no name says one.

    Attributes:
        root: the folder.
        pairs: images with their masks.
        bare: images without a mask.
        alone: masks without an image.
        ignored: other files: ids of instances, coloured copies.
        notes: what should be known about how they were found.
    """

    root: Path
    pairs: dict[str, list[Pair]] = field(default_factory=dict)
    bare: dict[str, list[Path]] = field(default_factory=dict)
    alone: list[Path] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def labelled(self) -> int:
        """Number of pairs."""
        return sum(map(len, self.pairs.values()))

    @property
    def images(self) -> list[Path]:
        """All images, with and without masks."""
        found = [image for pairs in self.pairs.values() for image, _ in pairs]
        return [*found, *(image for images in self.bare.values() for image in images)]


@dataclass(frozen=True)
class _File:
    """A file and what its names say."""

    path: Path
    reading: Reading

    @property
    def stem(self) -> str:
        return same_name(self.path.stem).casefold()


def find_layout(root: Path, images: Path | None = None, masks: Path | None = None) -> Layout:
    """The images and masks below a folder.

    Args:
        root: the folder.
        images, masks: folders below the root, where names alone do not tell the two apart.

    Raises:
        DataError: no such folder, or no images; or two masks belong to one image.
    """
    root = root.expanduser()
    if not root.is_dir():
        what = "is a file" if root.is_file() else "does not exist"
        raise DataError(f"{root}: the folder {what}. Give the folder of your images")
    files = _files(root, images, masks)
    if not files:
        kinds = ", ".join(IMAGE_ENDINGS)
        raise DataError(f"{root}: there is no image in this folder. Images end in {kinds}")
    layout = Layout(root)
    if masks is None:
        roles = _roles(files, layout)
    else:
        inside = [file.path.is_relative_to(root / masks) for file in files]
        given: list[Role] = ["mask" if one else "image" for one in inside]
        roles = {file.path: role for file, role in zip(files, given, strict=True)}
    roles = {
        path: "other" if _is_gif(path) and role == "image" else role for path, role in roles.items()
    }
    layout.ignored = [file.path for file in files if roles[file.path] == "other"]
    pictures = [file for file in files if roles[file.path] == "image"]
    labels = [file for file in files if roles[file.path] == "mask"]
    if not pictures:
        raise DataError(
            f"{root}: all {len(files)} files look like masks, e.g. {files[0].path}. Give the "
            "folder that has the images as well, or say which folder is which: --images DIR "
            "--masks DIR"
        )
    _match(pictures, labels, layout)
    return layout


def _files(root: Path, images: Path | None, masks: Path | None) -> list[_File]:
    if (images is None) != (masks is None):
        raise DataError("give both, the folder of the images and the one of the masks, or neither")
    folders = [root / part for part in (masks, images) if part is not None] or [root]
    found: dict[Path, _File] = {}
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"there is no folder {folder}")
        for path in images_below(folder, (*IMAGE_ENDINGS, _GIF)):
            found.setdefault(path, _File(path, read_path(path.relative_to(folder))))
    return [] if all(map(_is_gif, found)) else list(found.values())


def _is_gif(path: Path) -> bool:
    """Whether a file may be a mask, but no image: animations and drawings are GIFs, too."""
    return path.suffix.lower() == _GIF


def _roles(files: Sequence[_File], layout: Layout) -> dict[Path, Role]:
    """By names of files where these have a counterpart, by names of folders, else by content."""
    stems = {(file.path.parent, file.stem) for file in files}
    anywhere = {file.stem for file in files} | {
        bare_stem(file.path.stem, "image") for file in files
    }
    roles: dict[Path, Role | None] = {}
    for file in files:
        own = role_of_stem(file.path.stem)
        role: Role | None = file.reading.role
        if own == "other":
            role = "other"
        elif own == "mask" and role != "mask":
            # `a_mask` beside `a`; `road_seg` alone may just be the name of an image.
            bare = bare_stem(file.path.stem, "mask")
            near = (file.path.parent, bare) in stems or bare in anywhere - {file.stem}
            role = "mask" if near else role
        elif own == "image" and role is None:
            role = "image"
        roles[file.path] = role
    if "mask" not in roles.values():
        _by_content(files, roles, layout)
    return {path: role or "image" for path, role in roles.items()}


def _by_content(files: Sequence[_File], roles: dict[Path, Role | None], layout: Layout) -> None:
    """Finds masks among files whose names do not say it: few values, stored without loss."""
    unknown = [file for file in files if roles[file.path] is None]
    groups: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for file in unknown:
        groups[file.path.parent, file.path.suffix.lower()].append(file.path)
    if len(groups) < 2 and len(unknown) == len(files):
        return  # one kind of files: images
    found = [
        key
        for key, paths in groups.items()
        if all(_looks_like_mask(path) for path in paths[:: max(1, len(paths) // _LOOKED_AT)][:3])
    ]
    if len(found) == len(groups) and len(unknown) == len(files):
        return
    for folder, ending in found:
        layout.notes.append(
            f"{folder}/*{ending} are taken for masks: they have few values, no name says so"
        )
        roles.update(dict.fromkeys(groups[folder, ending], "mask"))


def _looks_like_mask(path: Path) -> bool:
    if path.suffix.lower() in (".jpg", ".jpeg"):
        return False
    try:
        mask = read_mask(path)
    except SegKDError:
        return False
    values = packed_colors(mask) if mask.ndim == 3 else mask
    return len(np.unique(values)) <= _FEW_VALUES


def _match(pictures: Sequence[_File], labels: Sequence[_File], layout: Layout) -> None:
    """Sorts images and masks into pairs: same place and name, else a name that is unique."""
    taken: dict[Path, Path] = {}
    masks: dict[Path, Path] = {}  # by image
    ways = [(False, False), (False, True), (True, False), (True, True)]
    for by_place in (True, False):
        for bare_image, bare_mask in ways:
            index: dict[object, list[_File]] = defaultdict(list)
            for label in labels:
                if label.path not in taken:
                    index[_key(label, "mask", bare_mask, by_place)].append(label)
            left = [file for file in pictures if file.path not in masks]
            keys = {file.path: _key(file, "image", bare_image, by_place) for file in left}
            often = Counter(keys.values())
            for file in left:
                found = index.get(keys[file.path], [])
                if not by_place and (len(found) != 1 or often[keys[file.path]] != 1):
                    continue
                if found:
                    _require_one(file.path, [label.path for label in found])
                    mask = found[0].path
                    if mask in taken:
                        raise DataError(
                            f"{mask}: belongs to {taken[mask]} as well as to {file.path}. Remove "
                            "or rename one of the two images"
                        )
                    masks[file.path], taken[mask] = mask, file.path
    if labels and not masks:
        masks = _by_affix(pictures, labels)
        taken = {mask: image for image, mask in masks.items()}
    for file in pictures:
        split = file.reading.split
        if file.path in masks:
            layout.pairs.setdefault(split, []).append((file.path, masks[file.path]))
        else:
            layout.bare.setdefault(split, []).append(file.path)
    layout.alone = [label.path for label in labels if label.path not in taken]


def _by_affix(pictures: Sequence[_File], labels: Sequence[_File]) -> dict[Path, Path]:
    """Masks whose names are those of their images with the same letters added: ``a`` and ``a_L``.

    Returns:
        Masks by image; empty unless this explains at least half of the masks.
    """
    images = dict.fromkeys(file.stem for file in pictures)
    votes: Counter[tuple[str, str]] = Counter()
    for label in labels[:: max(1, len(labels) // _VOTERS)]:
        for stem in images:
            before, found, after = label.stem.partition(stem)
            if found and not (before and after):
                votes[before, after] += 1
    if not votes:
        return {}
    (before, after), number = votes.most_common(1)[0]
    if 2 * number < min(len(labels), _VOTERS):
        return {}
    masks: dict[Path, Path] = {}
    for by_place in (True, False):  # the folder tells images of one name apart
        of_images: dict[object, list[Path]] = defaultdict(list)
        of_masks: dict[object, list[Path]] = defaultdict(list)
        taken = set(masks.values())
        for file in pictures:
            if file.path not in masks:
                of_images[_placed(file, file.stem, by_place)].append(file.path)
        for file in labels:
            if file.path not in taken:
                stem = file.stem.removeprefix(before).removesuffix(after)
                of_masks[_placed(file, stem, by_place)].append(file.path)
        for key, paths in of_images.items():
            if len(paths) == 1 and len(of_masks[key]) == 1:
                masks[paths[0]] = of_masks[key][0]
    return masks


def _key(file: _File, role: Role, bare: bool, by_place: bool) -> tuple[object, ...]:
    stem = bare_stem(file.path.stem, role) if bare else file.stem
    return _placed(file, stem, by_place)


def _placed(file: _File, stem: str, by_place: bool) -> tuple[object, ...]:
    return (file.reading.split, file.reading.place, stem) if by_place else (stem,)


def _require_one(image: Path, masks: Sequence[Path]) -> None:
    if len(masks) > 1:
        folders = sorted({str(mask.parent) for mask in masks})
        raise DataError(
            f"{image} has {len(masks)} masks: {masks[0]} and {masks[1]}. Say which folder has the "
            f"right ones, e.g. --images {image.parent.name} --masks {Path(folders[0]).name}, or "
            "move the others away"
        )


@dataclass(frozen=True)
class Declared:
    """How the spec of dataset `folder` names some pairs.

    Attributes:
        images, masks: folders below the root.
        lines: of the list file; empty: all files of these folders.
    """

    images: str
    masks: str | None
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Endings:
    """``image_ending`` and ``mask_ending`` of a spec."""

    image: str
    mask: str


def common_endings(pairs: Iterable[Pair]) -> Endings | None:
    """Endings with which the name of each mask follows from its image's; None if none do."""
    pairs = list(pairs)
    image, mask = pairs[0]
    candidates = [("", mask.name[len(image.stem) :])] if mask.name.startswith(image.stem) else []
    shared = image.name[: _equal(image.name, mask.name)]
    candidates += [(image.name[len(base) :], mask.name[len(base) :]) for base in _bases(shared)]
    for of_image, of_mask in candidates:
        if of_mask and all(_follows(*pair, of_image, of_mask) for pair in pairs):
            return Endings(of_image, of_mask)
    return None


def _bases(shared: str) -> list[str]:
    """The common part of two names: up to its last separator, and whole."""
    cut = max(shared.rfind(mark) for mark in "_-. ")
    return [base for base in (shared[:cut] if cut > 0 else "", shared) if base]


def _follows(image: Path, mask: Path, of_image: str, of_mask: str) -> bool:
    stem = image.stem if not of_image else image.name.removesuffix(of_image)
    return stem != image.name and mask.name == stem + of_mask


def declare(root: Path, pairs: Sequence[Pair], endings: Endings | None) -> Declared:
    """Folders and, where these have other files too, a list of pairs.

    Args:
        root: of the set.
        pairs: of one split.
        endings: of the spec; None: each line of the list has the image and its mask.
    """
    folders = _folders(root, pairs)
    if endings is None or folders is None:
        tabbed = (f"{i.relative_to(root)}\t{m.relative_to(root)}" for i, m in pairs)
        return Declared(".", ".", tuple(line.replace(os.sep, "/") for line in tabbed))
    images, masks = folders
    ending = (endings.image.lower(),) if endings.image else IMAGE_ENDINGS
    there = images_below(root / images, ending)
    if images == masks:
        there = [path for path in there if not path.name.endswith(endings.mask)]
    lines = tuple(image.relative_to(root / images).as_posix() for image, _ in pairs)
    all_of_them = set(there) == {image for image, _ in pairs}
    return Declared(images.as_posix(), masks.as_posix(), () if all_of_them else lines)


def declare_images(root: Path, images: Sequence[Path], ending: str) -> Declared:
    """A folder and a list of images without masks."""
    top = Path(os.path.commonpath([path.parent for path in images]))
    lines = [path.relative_to(top).as_posix() for path in images]
    wanted = (ending.lower(),) if ending else IMAGE_ENDINGS
    whole = set(images_below(top, wanted)) == set(images)
    return Declared(top.relative_to(root).as_posix(), None, () if whole else tuple(lines))


def _folders(root: Path, pairs: Sequence[Pair]) -> tuple[Path, Path] | None:
    """Folders below which each mask has the place of its image; None if there are none."""
    heads, tails = set(), []
    for image, mask in pairs:
        one, other = (path.parent.relative_to(root).parts for path in (image, mask))
        same = 0
        while same < min(len(one), len(other)) and one[-1 - same] == other[-1 - same]:
            same += 1
        heads.add((one[: len(one) - same], other[: len(other) - same]))
        tails.append(one[len(one) - same :])
    if len(heads) != 1:
        return None
    shared = tails[0]
    for tail in tails:
        shared = shared[: _equal(shared, tail)]
    ((one, other),) = heads
    return Path(*one, *shared), Path(*other, *shared)


def _equal(one: Sequence[str], other: Sequence[str]) -> int:
    """Number of equal leading characters of two names, or folders of two paths."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
