"""Lanes of BDD100K: one class, no identity; 70 000 training and 10 000 validation images.

Yu et al., "BDD100K: A Diverse Driving Dataset for Heterogeneous Multitask Learning", CVPR 2020,
arXiv 1805.04687; https://bdd-data.berkeley.edu. Lanes as ENet-SAD uses them (Hou et al., ICCV
2019, arXiv 1908.00821): the line between the two annotated borders of a marking, 8 px wide for
training and 2 px for the score. The files do not say which borders belong together, and that code
is not public: see ``segkd/data/bdd100k_lines.py`` for how they are paired here.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, PositiveInt

from segkd.data.base import DataConfig
from segkd.data.bdd100k_lines import borders_of, centre_lines
from segkd.data.culane import Listed, read_listed
from segkd.data.lane_base import LaneAnnotation, LaneDataConfig
from segkd.data.lane_files import LaneFiles, missing_annotation, read_lane_mask
from segkd.data.lane_masks import Slots, joined, painted
from segkd.data.paired import images_below
from segkd.data.reading import SampleError
from segkd.errors import DataError
from segkd.texts import json_kind, parse_json, read_text

TEST_WIDTH = 2  # of the lanes that the score counts
_IMAGES = "images/100k"
_LABELS = (
    "labels/lane/polygons/lane_{split}.json",
    "labels/bdd100k_labels_images_{split}.json",
    "bdd100k_labels_images_{split}.json",
)
_OLD_IMAGES = ("train_img", "val_img")  # folders in the lists of the ENet-SAD repository


class BDD100KConfig(LaneDataConfig):
    """Keys of ``data:`` for BDD100K."""

    num_lanes: Literal[1] = Field(1, description="slots; lanes have no identity here")
    lane_width: PositiveInt = Field(8, description="of painted lanes, pixels of the stored image")


class BDD100K(LaneFiles):
    """Lanes of BDD100K, from the official label files or from the masks of ENet-SAD.

    With ``list/<split>_gt_bdd.txt`` (lines: image, mask) masks are read as they are, in training
    and for the score. Without, lanes are painted from the label file of the split.
    """

    name = "bdd100k"
    metric = "bdd100k"
    Config = BDD100KConfig
    config: BDD100KConfig
    curved = False
    expected_tree = """\
bdd100k/
  images/100k/{train,val}/0000f77c-6257be58.jpg
  labels/lane/polygons/lane_{train,val}.json   or labels/bdd100k_labels_images_{train,val}.json
  or, as ENet-SAD: list/{train,val,test}_gt_bdd.txt with lines `image mask`, and these masks"""

    def __init__(self, config: DataConfig, split: str) -> None:
        self.listed: list[Listed] | None = None
        self._frames: list[dict[str, Any]] = []
        super().__init__(config, split)

    def annotation(self, index: int) -> LaneAnnotation:
        """``pixels`` is what the score counts: stored masks, or lines of 2 px."""
        size = self.image_size(index)
        mask = self._mask(index)
        if mask is not None:
            return LaneAnnotation([], size, pixels=mask)
        lines = self._centres(index)
        pixels = painted([joined(lines)], size, TEST_WIDTH, curved=False)
        return LaneAnnotation(lines, size, pixels=pixels)

    def raw_lanes(self, index: int) -> list[np.ndarray]:
        return [] if self.listed else borders_of(self._frame(index), str(self.pairs[index][1]))

    def has_both(self, index: int) -> bool:
        return False  # of a listed image the mask is all there is

    def _find(self) -> list[tuple[Path, Path | None]]:
        path = self.root / "list" / f"{self.split}_gt_bdd.txt"
        if path.is_file():
            self.listed = read_listed(path)
            return [self._listed_pair(path, listed) for listed in self.listed]
        names = [name.format(split=self.split) for name in _LABELS]
        file = next((self.root / name for name in names if (self.root / name).is_file()), None)
        folder = self.root / _IMAGES / self.split
        images = images_below(folder) if folder.is_dir() else []
        if not images:
            raise self._missing(folder / "*.jpg")
        if file is None:
            raise self._missing(self.root / names[0])
        frames = _frames(file)
        self._frames = [frames.get(image.name, {}) for image in images]
        return [(image, file) for image in images]

    def _listed_pair(self, path: Path, listed: Listed) -> tuple[Path, Path]:
        if listed.mask is None:
            raise DataError(f"{path}: {listed.image} has no mask; expected lines `image mask`")
        image, first = self.root / listed.image, Path(listed.image).parts[0]
        if first in _OLD_IMAGES and not (self.root / first).is_dir():
            image = self.root / _IMAGES / Path(*Path(listed.image).parts[1:])
        return image, self.root / listed.mask

    def _centres(self, index: int) -> list[np.ndarray]:
        return centre_lines(borders_of(self._frame(index), str(self.pairs[index][1])))

    def _frame(self, index: int) -> dict[str, Any]:
        """The image's entry of the label file; an image without lanes has one, too."""
        frame = self._frames[index]
        if not frame:
            text = f"has no entry for {self.pairs[index][0].name}"
            raise SampleError(self.pairs[index][1], text, "Fetch the labels again.")
        return frame

    def _slots(self, index: int, size: tuple[int, int]) -> Slots:
        return (None if self.listed else joined(self._centres(index)),)

    def _mask(self, index: int) -> np.ndarray | None:
        if not self.listed:
            return None
        path = self.pairs[index][1]
        if not path.is_file():
            raise missing_annotation(path)
        return read_lane_mask(path, 1, binary=True)


def _frames(file: Path) -> dict[str, dict[str, Any]]:
    """Entries of a label file by image name. Raises DataError with the key that is missing."""
    frames = parse_json(read_text(file), str(file))
    if not isinstance(frames, list):
        raise DataError(f"{file}: expected a list of frames, got {json_kind(frames)}")
    for number, frame in enumerate(frames, 1):
        if not isinstance(frame, dict) or not isinstance(frame.get("name"), str):
            text = "the key name is missing, or no text"
            raise DataError(f"{file}, frame {number}: {text}. Fetch the labels again")
    return {Path(frame["name"]).name: frame for frame in frames}
