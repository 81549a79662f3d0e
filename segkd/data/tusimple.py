"""TuSimple: highway lanes, 3 626 training and 2 782 test images of 720x1280.

The TuSimple lane detection challenge, 2017; https://github.com/TuSimple/tusimple-benchmark.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from segkd.data.base import DataConfig
from segkd.data.findings import Finding
from segkd.data.lane_base import LaneAnnotation, LaneDataConfig
from segkd.data.lane_files import LaneFiles, read_lane_mask
from segkd.data.lane_masks import Slots, arranged
from segkd.data.reading import SampleError
from segkd.errors import DataError
from segkd.metrics.tusimple import read_items
from segkd.texts import is_number

_TRAIN = ("label_data_0313.json", "label_data_0601.json")
_VAL = ("label_data_0531.json",)
SPLITS = {
    "train": _TRAIN,
    "val": _VAL,
    "trainval": (*_TRAIN, *_VAL),
    "test": ("test_label.json",),
}
UNLABELLED = "test_tasks_*.json"  # of the benchmark, with empty lanes or none
FOLDERS = (".", "train_set", "test_set")  # the official archives unpack to the latter two


class TuSimpleConfig(LaneDataConfig):
    """Keys of ``data:`` for TuSimple."""

    any_sides = True
    num_lanes: int = Field(
        6, ge=2, le=12, description="slots; 6 in the public ENet and SCNN models"
    )
    masks: bool = Field(False, description="read <root>/seg_label instead of painting lanes")

    @model_validator(mode="after")
    def _masks_of_even_sides(self) -> Self:
        if self.masks and not self.even_sides:
            raise ValueError(
                "`masks` number as many lanes left of the car as right of it. Remove `left_lanes`, "
                "and take an even `num_lanes`, or set masks=false so that lanes are painted"
            )
        return self


class TuSimple(LaneFiles):
    """TuSimple, from its label files.

    Splits are those of most public code: ``train`` is 0313 and 0601, ``val`` is 0531, ``trainval``
    all three, ``test`` is ``test_label.json`` (or the unlabelled ``test_tasks_*.json``). ``all`` is
    every ``label_data*.json``. Another name, or one of these whose files are missing, is
    ``<name>.json``. ``raw_file`` is a path below the folder of its label file.
    """

    name = "tusimple"
    metric = "tusimple"
    Config = TuSimpleConfig
    config: TuSimpleConfig
    expected_tree = """\
tusimple/                      or below it train_set/ and test_set/, as unpacked
  clips/0313-1/6040/20.jpg
  label_data_0313.json, label_data_0531.json, label_data_0601.json
  test_label.json              optional: split test
  seg_label/0313-1/6040/20.png optional: masks of ids, read with data.masks=true"""

    def __init__(self, config: DataConfig, split: str) -> None:
        self._items: list[tuple[Path, int, dict[str, Any]]] = []  # label file, line, object
        super().__init__(config, split)

    def annotation(self, index: int) -> LaneAnnotation:
        """The lanes at the rows of the image. Raises SampleError for malformed or no lanes."""
        _, _, item = self._items[index]
        if "lanes" not in item:
            repair = "The score needs test_label.json: fetch it from the benchmark's page."
            raise SampleError(self.where(index), "the image has no annotation", repair)
        rows = self._numbers(index, "h_samples", item["h_samples"])
        lanes = []
        for number, lane in enumerate(item["lanes"], 1):
            x = self._numbers(index, f"lane {number}", lane)
            if len(x) != len(rows):
                text = f"lane {number} has {len(x)} points, but h_samples has {len(rows)}"
                repair = "Give one x per row, -2 where the lane is absent."
                raise SampleError(self.where(index), text, repair)
            lanes.append(np.stack([x[x >= 0], rows[x >= 0]], axis=1))
        return LaneAnnotation(lanes, self.image_size(index), rows)

    def entry(self, index: int) -> Path:
        """``raw_file`` of the image."""
        return Path(self._items[index][2]["raw_file"])

    def where(self, index: int) -> str:
        """Label file, line and image, for messages."""
        file, line, item = self._items[index]
        return f"{file}, line {line} ({item['raw_file']})"

    def problems(self) -> Iterator[Finding]:
        """Images with more lanes on a side than there are slots, or in several label files."""
        names = Counter(item["raw_file"].lstrip("/") for _, _, item in self._items)
        twice = [name for name, number in names.items() if number > 1]
        if twice:
            text = f"{len(twice)} images are in two label files, the first: {twice[0]}"
            yield Finding("warning", str(self.root), text, "They count twice: remove a file.")
        if self.pairs[0][1] is None:
            return
        most = max(len(item["lanes"]) for _, _, item in self._items)
        if most > self.config.num_lanes:
            text = f"images have up to {most} lanes, data.num_lanes is {self.config.num_lanes}"
            yield Finding("warning", str(self.root), text, "The outermost lanes are dropped.")

    def _find(self) -> list[tuple[Path, Path | None]]:
        files, labelled = self._label_files()
        keys = ("raw_file", "lanes", "h_samples") if labelled else ("raw_file", "h_samples")
        pairs = []
        for file in files:
            for line, item in read_items(file, keys).values():
                self._items.append((file, line, item))
                image = beside(file, item["raw_file"], self.root)
                pairs.append((image, file if labelled else None))
        return pairs

    def _label_files(self) -> tuple[list[Path], bool]:
        """Label files of the split, and whether they have lanes."""
        folders = [self.root / folder for folder in FOLDERS]
        if self.split == "all":
            found = [path for folder in folders for path in sorted(folder.glob("label_data*.json"))]
        else:
            wanted = SPLITS.get(self.split, ())
            found = [path for name in wanted if (path := _first(folders, name))]
            if len(found) < len(wanted) or not wanted:
                found = [path] if (path := _first(folders, f"{self.split}.json")) else []
        if found:
            return found, not any(path.match(UNLABELLED) for path in found)
        tasks = [path for folder in folders for path in sorted(folder.glob(UNLABELLED))]
        if self.split == "test" and tasks:
            return tasks, False
        raise self._without_labels()

    def _without_labels(self) -> DataError:
        wanted = ", ".join(SPLITS.get(self.split, (f"{self.split}.json",)))
        others = sorted(path.name for path in self.root.glob("label_data*.json"))
        if not others:
            return self._missing(self.root / wanted)
        return DataError(
            f"dataset 'tusimple': split '{self.split}' is {wanted}, but {self.root} has "
            f"{', '.join(others)}. Fetch the rest, or use all existing label files: "
            f"data.train_split=all data.val_split=all"
        )

    def _numbers(self, index: int, what: str, values: object) -> np.ndarray:
        if not isinstance(values, list) or not all(map(is_number, values)):
            repair = "Give x (or y) of each row, like [632, 625, -2]."
            raise SampleError(self.where(index), f"{what} is not a list of numbers", repair)
        return np.array(values, np.float64)

    def _slots(self, index: int, size: tuple[int, int]) -> Slots:
        sides = self.config.num_lanes, self.config.left_of_car
        return arranged(self.annotation(index).lanes, size, *sides)

    def _mask(self, index: int) -> np.ndarray | None:
        if not self.config.masks:
            return None
        label_file, _, item = self._items[index]
        _, _, below = item["raw_file"].lstrip("/").partition("/")
        mask = Path("seg_label", below).with_suffix(".png")
        file = beside(label_file, mask.as_posix(), self.root)
        return read_lane_mask(file, self.config.num_lanes)


def beside(file: Path, name: str, root: Path) -> Path:
    """A file of the set: in the folder of a label file, or else in another one below the root."""
    name = name.lstrip("/")
    places = [file.parent / name, *(root / folder / name for folder in FOLDERS)]
    return next((place for place in places if place.is_file()), places[0])


def _first(folders: list[Path], name: str) -> Path | None:
    return next((folder / name for folder in folders if (folder / name).is_file()), None)
