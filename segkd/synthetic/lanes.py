"""Lanes: endless synthetic road scenes with up to four lanes as CULane annotates them.

An image is a pure function of (seed, split, index), and with ``photographs`` of their files.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt, SerializeAsAny, model_validator

from segkd.data.base import DataConfig, Sample, Size
from segkd.data.lane_base import (
    LaneAnnotation,
    LaneDataConfig,
    LaneDataset,
    lane_classes,
    lane_palette,
)
from segkd.data.lane_masks import painted
from segkd.errors import DataError
from segkd.synthetic.drawn import NoFolder
from segkd.synthetic.photographs import PhotographsConfig, StreetPhotographs
from segkd.synthetic.roads.annotate import Lanes as Lines
from segkd.synthetic.roads.categories import CATEGORIES, category_of
from segkd.synthetic.roads.on_photographs import paint_road
from segkd.synthetic.roads.plan import SLOTS
from segkd.synthetic.scenes.dice import Dice

_SPLITS = ("train", "val", "test")
_SIZE = (144, 400)
_WIDTH = 16 / 1640  # of painted lanes, in image widths: CULane's
_BY_DAY = ("normal", "crowd", "shadow", "noline", "arrow", "curve")  # what a photograph may be
_PHOTOGRAPH = 9  # number of the dice that choose it


class LanesConfig(LaneDataConfig):
    """Sizes and numbers of scenes; the same scene looks the same at any size."""

    name: str = "lanes"
    root: NoFolder = Field(None, description="refused: images are drawn, not read")
    lane_width: PositiveInt = Field(4, description="of painted lanes; default: width / 102.5")
    size: Size = Field(_SIZE, description="height and width of the images")
    train_images: PositiveInt = Field(4000, description="of the split train")
    val_images: PositiveInt = Field(200, description="of the split val")
    test_images: PositiveInt = Field(400, description="of the split test")
    seed: NonNegativeInt = Field(0, description="of the world: another seed, other scenes")
    photographs: SerializeAsAny[PhotographsConfig] | None = Field(
        None, description="streets with labels: lanes are painted onto them, in the split train"
    )

    @model_validator(mode="before")
    @classmethod
    def _scaled(cls, values: dict) -> dict:
        """Without a lane width, CULane's at this image size."""
        size = values.get("size", _SIZE)
        if values.get("lane_width") is None and isinstance(size, list | tuple) and len(size) == 2:
            width = size[1] if isinstance(size[1], int) else _SIZE[1]
            values = {**values, "lane_width": max(1, round(width * _WIDTH))}
        return values

    @model_validator(mode="after")
    def _four_slots(self) -> "LanesConfig":
        if self.num_lanes != SLOTS:
            raise ValueError(f"num_lanes must be {SLOTS} in this set, as in CULane")
        if self.cut_top >= self.size[0]:
            raise ValueError(f"cut_top={self.cut_top} leaves nothing of {self.size[0]} rows")
        return self


class Lanes(LaneDataset):
    """Synthetic roads with up to four lanes, in splits without common scenes.

    In each scene the four visible lines next to the car are annotated, from the bottom up to
    where the ego lane is a twenty-fourth of the image wide. Lines are annotated behind cars and
    where their paint is worn off; at a crossing there are none.

    With ``photographs``, some scenes of the split "train" are street photographs without their
    own markings, onto whose roads lanes are painted; val and test stay drawn.

    Raises:
        DataError: unknown split, or a fault of ``photographs``.
    """

    name = "lanes"
    metric = "culane"
    Config = LanesConfig
    config: LanesConfig
    classes = lane_classes(SLOTS)
    palette = lane_palette(SLOTS)

    def __init__(self, config: DataConfig, split: str) -> None:
        super().__init__(config, split)
        if split not in _SPLITS:
            raise DataError(f"lanes has no split '{split}': use one of {', '.join(_SPLITS)}")
        block = self.config.photographs
        self._photographs = StreetPhotographs(block) if block and split == "train" else None

    @property
    def facts(self) -> dict[str, Any]:
        """On what the scenes depend, as plain data."""
        config = self.config
        found: dict[str, Any] = {"size": list(config.size), "seed": config.seed}
        found["lane_width"] = config.lane_width
        if config.photographs is not None:
            found["photographs"] = config.photographs.model_dump(mode="json")
        if self._photographs is not None:  # a scene is one of them by chance
            found["number_of_photographs"] = len(self._photographs)
        return found

    def __len__(self) -> int:
        return getattr(self.config, f"{self.split}_images")

    @functools.cached_property
    def categories(self) -> dict[str, list[int]]:
        """Indices of the images by CULane's nine categories; each scene has one."""
        found: dict[str, list[int]] = {name: [] for name in CATEGORIES}
        for index in range(len(self)):
            found[category_of(self._key(index))].append(index)
        return found

    def read(self, index: int) -> Sample:
        """Draws scene ``index``.

        Raises:
            DataError: an index beyond the split, or a photograph that cannot be read.
        """
        from segkd.synthetic.roads.scene import draw_road

        photographed = self._photographed(index)
        image, lanes = photographed or draw_road(self._key(index), self.config.size)
        label = painted(lanes, self.config.size, self.config.lane_width, curved=False)
        cut = self.config.cut_top
        lower = np.array((0, cut), np.float32)
        below = tuple(None if lane is None else lane - lower for lane in lanes)
        return Sample(image[cut:], label[cut:], f"{self.split}_{index:06d}", below)

    def annotation(self, index: int) -> LaneAnnotation:
        """The lanes, without drawing the scene. Raises DataError as ``slots`` does."""
        lanes = [lane for lane in self.slots(index) if lane is not None]
        return LaneAnnotation(lanes, self.config.size)

    def slots(self, index: int) -> Lines:
        """The annotated lanes by slot, each (n, 2) or None, without drawing the scene.

        Raises:
            DataError: an index beyond the split, or a photograph that cannot be read.
        """
        from segkd.synthetic.roads.scene import Scene

        photographed = self._photographed(index)
        if photographed is not None:
            return photographed[1]
        return Scene.sample(self._key(index)).lanes(self.config.size)

    def entry(self, index: int) -> Path:
        """The path that `segkd data make lanes` gives the image."""
        return Path(f"lanes_{self.split}", f"{index // 1000:03d}.MP4", f"{index:06d}.jpg")

    def _photographed(self, index: int) -> tuple[np.ndarray, Lines] | None:
        """Image and lanes of a scene that is a photograph; None for a drawn one."""
        key, photographs, block = self._key(index), self._photographs, self.config.photographs
        category, dice = category_of(key), Dice((*key, _PHOTOGRAPH))
        if photographs is None or block is None or category not in _BY_DAY:
            return None
        if not dice.chance(block.share):
            return None
        photograph = photographs[dice.integer(0, len(photographs) - 1)]
        return paint_road(photograph, category, self.config.size, dice)

    def _key(self, index: int) -> tuple[int, int, int]:
        if not 0 <= index < len(self):
            raise DataError(
                f"lanes: '{self.split}' has scenes 0 to {len(self) - 1}, got {index}; "
                f"data.{self.split}_images sets their number"
            )
        return self.config.seed, _SPLITS.index(self.split), index
