"""Splits of a folder by its list files: which image a line means, and which lines mean none."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from segkd.data.files import same_name
from segkd.data.layout import SPLITS, Layout, Pair
from segkd.data.lists import ENDING, readings
from segkd.data.paired import IMAGE_ENDINGS
from segkd.data.reading import listed
from segkd.errors import DataError
from segkd.texts import read_lines

_FOLDERS = ("", "splits", "split", "lists", "list", "ImageSets/Segmentation", "ImageSets")
_FEW = 3  # lines in a message
Parts = tuple[str, ...]


@dataclass(frozen=True)
class _Image:
    """An image by its path below the root; no pair: it has no mask."""

    parts: Parts
    pair: Pair | None

    @property
    def path(self) -> str:
        return "/".join(self.parts)


@dataclass(frozen=True)
class _Line:
    """A line of a list file.

    Attributes:
        image: that it means; None: there is no such image.
        shared: number of folders that it shares with the path of the image.
        above: the folders in front of these, which the image is not in.
    """

    split: str
    where: str
    text: str
    image: _Image | None = None
    shared: int = 0
    above: Parts = ()


def divided_by_lists(layout: Layout, notes: list[str]) -> dict[str, list[Pair]]:
    """Pairs by split, by files train.txt, val.txt and test.txt with names of images.

    A line means the image whose path ends like it in the most folders. One that names none of its
    folders rightly, or has none, means the only image of its name.

    Args:
        layout: of the folder.
        notes: gets lines for the user: lists that are not used, lines that mean no image.

    Returns:
        The splits; empty without list files, or where no line means an image.

    Raises:
        DataError: a line fits several images, several lines fit one, or one of the lists for
            training and validation has no pair, but the other one has.
    """
    images = [pair for pairs in layout.pairs.values() for pair in pairs]
    bare = [path for paths in layout.bare.values() for path in paths]
    known = _Known(layout.root, images, bare)
    for files in _list_files(layout.root):
        names = listed([str(file) for file in files.values()], len(SPLITS))
        absent = [f"{split}{ENDING}" for split in ("train", "val") if split not in files]
        if absent:
            notes.append(f"not used: {names}, as there is no {' and no '.join(absent)} beside")
            continue
        lines = [
            known.meant(_Line(split, f"{file}, line {number}", text))
            for split, file in files.items()
            for number, text in read_lines(file)
        ]
        lines = _without_contradictions(lines)
        if not any(line.image for line in lines):
            shown = f", e.g. '{lines[0].text[:90]}'" if lines else ""
            notes.append(
                f"not used: {names}, as no line is an image of this folder{shown}. Lines are paths "
                f"below {layout.root}"
            )
            continue
        return _splits(files, lines, layout.root, notes)
    return {}


def tell_unused_lists(root: Path, notes: list[str]) -> None:
    """Adds a note if list files say how to divide a folder that its subfolders divide already."""
    for files in _list_files(root):
        if "train" in files and "val" in files:
            names = listed([str(file) for file in files.values()], len(SPLITS))
            notes.append(f"not used: {names}, as the folders say which images are for training")


def _list_files(root: Path) -> list[dict[str, Path]]:
    """List files by split, for each folder that has any."""
    found = []
    for place in _FOLDERS:
        files = {split: root / place / f"{split}{ENDING}" for split in SPLITS}
        found.append({split: file for split, file in files.items() if file.is_file()})
    return [files for files in found if files]


class _Known:
    """The images of a folder, by the ends of their paths."""

    def __init__(self, root: Path, pairs: Iterable[Pair], bare: Iterable[Path]) -> None:
        self.root = same_name(root.as_posix()).rstrip("/") + "/"
        self._by_name: dict[Parts, list[_Image]] = defaultdict(list)
        self._by_stem: dict[Parts, list[_Image]] = defaultdict(list)
        both = [*((pair[0], pair) for pair in pairs), *((path, None) for path in bare)]
        for path, pair in both:
            image = _Image(_parts(path.relative_to(root).as_posix()), pair)
            for start in range(len(image.parts)):
                end = image.parts[start:]
                self._by_name[end].append(image)
                self._by_stem[_without_ending(end)].append(image)

    def meant(self, line: _Line) -> _Line:
        """The line with the image that it means. Raises DataError if it fits several."""
        for reading in readings(line.text):
            parts = _parts(reading.replace("\\", "/").removeprefix(self.root))
            above, images = self._longest_end(parts)
            if above and len(reading.split()) > 1:
                continue  # may be two columns, the last of which would decide
            if len(images) > 1:
                raise DataError(
                    f"{line.where}: '{reading}' may be "
                    f"{listed([image.path for image in images], _FEW)}. Write the whole path below "
                    f"{self.root.rstrip('/')}, with its ending"
                )
            if images:
                shared = len(parts) - len(above) - 1
                return replace(line, image=images[0], shared=shared, above=above)
        return line

    def _longest_end(self, parts: Parts) -> tuple[Parts, list[_Image]]:
        """Images whose paths end like ``parts`` in the most folders, and the folders above."""
        for start in range(len(parts)):
            end = parts[start:]
            by_stem = self._by_stem.get(end) or self._by_stem.get(_without_ending(end))
            images = self._by_name.get(end) or by_stem
            if images:
                return parts[:start], images
        return (), []


def _without_contradictions(lines: Sequence[_Line]) -> list[_Line]:
    """Of lines that mean one image, those that name other folders mean none.

    Raises:
        DataError: they name different folders, and the image is in none of them.
    """
    by_image: dict[_Image, list[_Line]] = defaultdict(list)
    for line in lines:
        if line.image is not None:
            by_image[line.image].append(line)
    most = {image: max(line.shared for line in own) for image, own in by_image.items()}
    for image, own in by_image.items():
        rivals = {line.above: line for line in own if line.above and line.shared == most[image]}
        if len(rivals) > 1:
            one, other = list(rivals.values())[:2]
            raise DataError(
                f"{other.where}: '{other.text}' and '{one.text}' ({one.where}) may both be "
                f"{image.path}. Write paths below the folder of the set"
            )
    return [
        replace(line, image=None)
        if line.image is not None and line.above and line.shared < most[line.image]
        else line
        for line in lines
    ]


def _splits(
    files: dict[str, Path], lines: Sequence[_Line], root: Path, notes: list[str]
) -> dict[str, list[Pair]]:
    """The pairs of each list. Raises DataError if there are none for training or validation."""
    found: dict[str, list[Pair]] = {}
    for split, file in files.items():
        own = [line for line in lines if line.split == split]
        pairs = [line.image.pair for line in own if line.image and line.image.pair]
        without = [line.text for line in own if line.image is None or line.image.pair is None]
        if not pairs and split != "test":
            shown = f": {listed(without, _FEW)}" if without else ""
            raise DataError(
                f"{file}: none of its {len(own)} lines is an image with a mask{shown}. Write paths "
                f"below {root}, or move the list files away to have the images divided"
            )
        if without:
            notes.append(
                f"{file}: {len(without)} of {len(own)} lines are no image with a mask, and are "
                f"left out: {listed(without, _FEW)}"
            )
        if pairs:
            found[split] = list(dict.fromkeys(pairs))
    both = [pair[0].relative_to(root) for pair in found["val"] if pair in set(found["train"])]
    if both:
        notes.append(
            f"{len(both)} images are in the lists for training and for validation: scores on them "
            f"say little: {listed([path.as_posix() for path in both], _FEW)}"
        )
    return found


def _parts(path: str) -> Parts:
    return tuple(part for part in same_name(path).split("/") if part not in ("", "."))


def _without_ending(parts: Parts) -> Parts:
    """A path without the ending of an image; `frame.0001` has none."""
    name = Path(parts[-1])
    return (*parts[:-1], name.stem) if name.suffix.lower() in IMAGE_ENDINGS else parts
