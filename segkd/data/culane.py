"""CULane: the four lanes next to the car, 88 880 training, 9 675 validation, 34 680 test images.

Pan et al., "Spatial As Deep: Spatial CNN for Traffic Scene Understanding", AAAI 2018,
arXiv 1712.06080; https://xingangpan.github.io/projects/CULane.html. Images are 590x1640.
"""

import functools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self, TypeVar

import numpy as np
from pydantic import Field, model_validator

from segkd.data.base import DataConfig
from segkd.data.culane_lists import MOST_LANES, Listed, number_of_flags, read_listed
from segkd.data.findings import Finding
from segkd.data.lane_base import LaneAnnotation, LaneDataConfig
from segkd.data.lane_files import LaneFiles, read_lane_mask
from segkd.data.lane_masks import Slots, arranged, cleaned, flagged, left_of_flags
from segkd.data.paired import images_below
from segkd.data.reading import SampleError
from segkd.errors import DataError
from segkd.metrics.culane_text import lines_file, read_categories, read_lanes
from segkd.yaml_tree import typed

MASK_WIDTH = 16
MASKS = Path(f"laneseg_label_w{MASK_WIDTH}")
ENDINGS = (".jpg", ".jpeg", ".png")
Item = TypeVar("Item")


class CULaneConfig(LaneDataConfig):
    """Keys of ``data:`` for CULane."""

    any_sides = True
    num_lanes: int = Field(
        4, ge=2, le=MOST_LANES, description="slots; CULane has four, sets in its form may have more"
    )
    lists: Path | None = Field(None, description="folder of the list files; default: <root>/list")
    pseudo_lines: Path | None = Field(
        None,
        description="folder of a detector's .lines.txt, named like the images: labels of images "
        "without an annotation of their own; scores never use them",
    )
    pseudo_for: Literal["missing", "all"] = Field(
        "missing", description="all: pseudo lines replace the annotations as labels"
    )

    @model_validator(mode="after")
    def _of_pseudo_lines(self) -> Self:
        if self.pseudo_for == "all" and self.pseudo_lines is None:
            raise ValueError(
                "`pseudo_for: all` needs `pseudo_lines: FOLDER`. Give both, or neither"
            )
        return self


class CULane(LaneFiles):
    """CULane, and other sets in its layout.

    Split ``train`` is read from ``list/train_gt.txt`` (image, mask, a flag per slot) or, if that is
    missing, ``list/train.txt`` (images); other splits likewise. Split ``all`` is every image,
    without a list. Masks are read if a list names them, their folder exists, and ``lane_width`` is
    their width; otherwise lanes are painted from the ``.lines.txt`` files.
    """

    name = "culane"
    metric = "culane"
    Config = CULaneConfig
    config: CULaneConfig
    expected_tree = """\
culane/
  driver_23_30frame/05151640_0419.MP4/00000.jpg   and 00000.lines.txt, for every image
  list/train_gt.txt, val_gt.txt                   lines: image, mask, a flag per slot
  list/test.txt                                   lines: image
  list/test_split/test0_normal.txt, …             optional: categories
  laneseg_label_w16/driver_23_30frame/…/00000.png optional: masks, else painted
  without list/: `segkd data make culane`, or data.train_split=all"""

    def __init__(self, config: DataConfig, split: str) -> None:
        self.listed: list[Listed] = []
        super().__init__(config, split)
        self._check_flags()
        self.categories = self._categories()

    @property
    def lists_folder(self) -> Path:
        """The folder of the list files, which need not exist."""
        own = self.config.lists
        return self.root / "list" if own is None else own.expanduser()

    def slots(self, index: int) -> Slots:
        """The lanes (n, 2) of an image by slot, from its lane file and its flags."""
        return self._slots(index, self.image_size(index))

    def annotation(self, index: int) -> LaneAnnotation:
        """Lanes as the official program reads them: malformed lines end where they break."""
        return LaneAnnotation(self._lines(index, strict=False), self.image_size(index))

    def entry(self, index: int) -> Path:
        """Path of the image below the root, as in the list file."""
        return Path(self.listed[index].image)

    def flags(self, index: int) -> tuple[int, ...] | None:
        """Existence by slot in the list file, or None; without further slots that the list has.

        Images whose labels are pseudo lines have none.
        """
        if self._pseudo_file(index) is not None:
            return None
        flags = self.listed[index].flags
        return flags and self._centred(flags)

    def raw_lanes(self, index: int) -> list[np.ndarray]:
        """The lanes (n, 2) of an image's labels. Raises DataError for malformed lines."""
        pseudo = self._pseudo_file(index)
        return (
            self._lines(index, strict=True) if pseudo is None else read_lanes(pseudo, strict=True)
        )

    def problems(self) -> Iterator[Finding]:
        """Lists that contradict each other or contain an image twice."""
        names = [lines_file(listed.image) for listed in self.listed]
        twice = [name for name, number in Counter(names).items() if number > 1]
        where = str(self._list_file() or self.root)
        if twice:
            text = f"{len(twice)} images are listed twice, the first: {twice[0]}"
            yield Finding("warning", where, text, "Remove the lines; they count twice.")
        plain = self.lists_folder / f"{self.split}.txt"
        if where != str(plain) and plain.is_file() and self.split != "all":
            number = len(read_listed(plain))
            if number != len(names):
                text = f"lists {len(names)} images, but {plain.name} lists {number}"
                yield Finding("warning", where, text, "Remove the wrong list.")
        categorised = set().union(*self.categories.values()) if self.categories else set()
        if self.categories and len(categorised) < len(names):
            text = f"{len(names) - len(categorised)} of {len(names)} images have no category"
            yield Finding("warning", where, text, "Fetch list/test_split again.")

    def _categories(self) -> dict[str, list[int]]:
        folder = self.lists_folder / "test_split"
        if not folder.is_dir():
            return {}
        where = {lines_file(listed.image): i for i, listed in enumerate(self.listed)}
        members = {
            name: [where[file] for file in map(lines_file, entries) if file in where]
            for name, entries in read_categories(folder).items()
        }
        return {name: own for name, own in members.items() if own}

    def _list_file(self) -> Path | None:
        names = (f"{self.split}_gt.txt", f"{self.split}.txt")
        return next(
            (self.lists_folder / name for name in names if (self.lists_folder / name).is_file()),
            None,
        )

    def _find(self) -> list[tuple[Path, Path | None]]:
        path = self._list_file()
        if path is not None:
            self.listed = read_listed(path)
        elif self.split == "all":
            self.listed = [Listed(str(image), None, None) for image in frames(self.root)]
        if not self.listed:
            raise self._without_list()
        return [
            (self.root / listed.image, self.root / lines_file(listed.image))
            for listed in self.listed
        ]

    def _without_list(self) -> DataError:
        looked_for = self.lists_folder / f"{self.split}_gt.txt"
        found = frames(self.root) if self.root.is_dir() else []
        if not found:
            return self._missing(looked_for)
        return DataError(
            f"dataset 'culane': {self.root} has {len(found)} images, but no list of split "
            f"'{self.split}' ({looked_for} or {self.split}.txt). Make lists:\n"
            f"  segkd data make culane {typed('data.root', self.root)} [--out FOLDER]\n"
            f"or use all images: data.train_split=all data.val_split=all"
        )

    def where(self, index: int) -> str:
        """The file of an image's labels, for messages."""
        return str(self._pseudo_file(index) or self.pairs[index][1])

    def _lines(self, index: int, *, strict: bool) -> list[np.ndarray]:
        return read_lanes(self.annotation_file(index), strict=strict)

    def files(self, index: int) -> tuple[Path, Path | None]:
        """Paths of an image and of the file that labels it, its own or a detector's."""
        image, own = self.pairs[index]
        return image, self._pseudo_path(index) or own

    def _pseudo_path(self, index: int) -> Path | None:
        """Where the detector's file of an image belongs; None: its own annotation labels it."""
        folder, own = self.config.pseudo_lines, self.pairs[index][1]
        if folder is None or own is None:
            return None
        if self.config.pseudo_for == "missing" and own.is_file():
            return None
        return folder.expanduser() / lines_file(self.listed[index].image)

    def _pseudo_file(self, index: int) -> Path | None:
        """The detector's file that gives an image's labels; None: its own annotation does.

        Raises:
            SampleError: there is neither.
        """
        path = self._pseudo_path(index)
        if path is None or path.is_file():
            return path
        image, own = self.pairs[index]
        raise SampleError(
            image,
            f"it has no pseudo label {path}"
            + ("" if own is None or own.is_file() else f", and no {own}"),
            "Write one for each image, e.g. `segkd lane RUN FOLDER --points lines`; an empty file "
            "means that there is no lane.",
        )

    def _slots(self, index: int, size: tuple[int, int]) -> Slots:
        pseudo = self._pseudo_file(index)
        lanes = (
            self._lines(index, strict=True) if pseudo is None else read_lanes(pseudo, strict=True)
        )
        drawn = [lane for lane in lanes if len(cleaned(lane)) >= 2]
        flags, sides = self.listed[index].flags, (self.config.num_lanes, self.config.left_of_car)
        if pseudo is None and flags is not None and sum(flags) == len(drawn):
            return self._centred(flagged(drawn, flags, size))
        return arranged(drawn, size, *sides, pair_is_ego=self.config.even_sides)

    def _centred(self, slots: tuple[Item, ...]) -> tuple[Item, ...]:
        """Of the slots of a list, those that the configuration has, next to the car."""
        number = self.config.num_lanes
        if len(slots) == number:
            return slots
        first = len(slots) // 2 - self.config.left_of_car
        return slots[first : first + number]

    def _some(self) -> Iterator[tuple[list[np.ndarray], tuple[int, ...], tuple[int, int]]]:
        """Lanes, flags and size of some images, of long lists about a hundred."""
        flagged_ones = [i for i, one in enumerate(self.listed) if one.flags and any(one.flags)]
        for index in flagged_ones[:: max(1, len(flagged_ones) // 64)]:
            try:
                size = self.image_size(index)
                yield self._lines(index, strict=True), self.listed[index].flags or (), size
            except DataError:  # which reading it tells
                continue

    def _check_flags(self) -> None:
        """Raises DataError if the list has flags of other slots than the configuration."""
        number, left = self.config.num_lanes, self.config.left_of_car
        given = next((len(one.flags) for one in self.listed if one.flags is not None), 0)
        path, half = self._list_file(), given // 2
        if given == number:
            usual = self.config.left_lanes is None and self.config.even_sides
            found = left if usual else left_of_flags(self._some(), left)
            if found != left:
                raise DataError(
                    f"{path}: by where its lanes are, {found} of {number} flags are left of the "
                    f"car, not {left}. Set data.left_lanes={found}, or repair the list"
                )
            return
        if given % 2 == 0 and (given == 0 or max(left, number - left) <= half):
            return
        repair = f"data.num_lanes={given}"
        if given % 2:
            repair += " data.left_lanes=N, of the flags those left of the car"
        elif self.config.left_lanes is not None:
            repair += f" data.left_lanes={half}"
        raise DataError(
            f"{path}: each line has {given} flags of lanes, but data.num_lanes={number}, {left} of "
            f"them left of the car. Set {repair}, or repair the list"
        )

    def _mask(self, index: int) -> np.ndarray | None:
        if self._pseudo_file(index) is not None:
            return None
        mask, flags = self.listed[index].mask, self.listed[index].flags
        if not self.config.even_sides if flags is None else len(flags) != self.config.num_lanes:
            return None  # its ids are other slots
        if mask is None or not Path(mask).parts[0].endswith(f"_w{self.config.lane_width}"):
            return None
        for folder in self._mask_folders:
            if (folder / Path(mask).parts[0]).is_dir():
                return read_lane_mask(folder / mask, self.config.num_lanes)
        return None

    @functools.cached_property
    def _mask_folders(self) -> tuple[Path, ...]:
        """Where masks of the configured slots may be: beside the lists, then below the root.

        Lists elsewhere may be of other slots than the root's own masks: as many as its own lists
        have flags, CULane's four without any.
        """
        beside = self.lists_folder.parent
        if self.lists_folder == self.root / "list":
            return (self.root,)
        slots = number_of_flags(self.root / "list", 4)
        folders = [] if beside == self.root else [beside]
        if (self.config.num_lanes, self.config.left_of_car) == (slots, slots // 2):
            folders.append(self.root)
        return tuple(folders)


def frames(root: Path) -> list[Path]:
    """Paths of the images of a CULane tree below its root, without masks."""
    found = (path.relative_to(root) for path in images_below(root, ENDINGS))
    return [path for path in found if not path.parts[0].startswith("laneseg_label")]
