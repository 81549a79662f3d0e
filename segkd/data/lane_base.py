"""The base of lane datasets: images, lanes in slots, and annotations for the official metrics.

A slot is the identity of a lane: slot i has class id i + 1, class 0 is background. Points are x, y
in pixels. Networks are trained on class maps (lanes painted ``lane_width`` wide) and existence by
slot; metrics use the annotated lanes.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self, TypeGuard

import numpy as np
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from segkd.data.base import DataConfig, Dataset

Metric = Literal["culane", "tusimple", "bdd100k", "curvelanes", "llamas"]

_COLORS = np.array(  # from the middle to the right, then from the far left to the middle
    [
        (255, 80, 80),
        (255, 200, 0),
        (200, 80, 255),
        (255, 140, 190),
        (150, 90, 40),
        (170, 170, 170),
        (110, 110, 220),
        (240, 240, 160),
        (150, 220, 120),
        (60, 130, 255),
        (0, 200, 140),
        (0, 220, 255),
    ],
    np.uint8,
)


class LaneDataConfig(DataConfig):
    """Keys that every lane set has. Sizes are (height, width)."""

    num_lanes: PositiveInt = Field(4, description="slots: classes without the background")
    left_lanes: NonNegativeInt | None = Field(
        None,
        description="slots left of the car; null: half of them, of an odd number the smaller "
        "half. Unless it is half, images are not flipped",
    )
    lane_width: PositiveInt = Field(16, description="of painted lanes, pixels of the stored image")
    cut_top: NonNegativeInt = Field(0, description="rows to remove from the top of stored images")
    squeeze: float = Field(
        1.0,
        ge=1.0,
        description="by which `segkd lane` may squeeze images of a taller format before it cuts "
        "them at the top; above 1 for sets with squeezed images",
    )
    # Whether ``left_lanes`` may be another number: not where the set says which slot is which.
    any_sides: ClassVar[bool] = False

    rotation: NonNegativeFloat = Field(0.0, description="random, training; maximum in degrees")

    @model_validator(mode="after")
    def _of_two_sides(self) -> Self:
        number, left = self.num_lanes, self.left_of_car
        if left > number:
            raise ValueError(f"left_lanes={left} is more than num_lanes={number}. Set at most that")
        if not self.any_sides and left != number // 2:
            raise ValueError("left_lanes: the slots of this set are what they are. Remove the key")
        if not self.flip or self.even_sides:
            return self
        if "flip" not in self.model_fields_set:  # a default of these sides
            object.__setattr__(self, "flip", 0.0)
            return self
        raise ValueError(
            f"slots left of the car: {left}, right of it: {number - left}. A mirror image has "
            f"lanes without a slot, so flip={self.flip:g} cannot be. Set data.flip=0, or as many "
            "slots on both sides"
        )

    @property
    def left_of_car(self) -> int:
        """Number of slots left of the car."""
        return self.num_lanes // 2 if self.left_lanes is None else self.left_lanes

    @property
    def even_sides(self) -> bool:
        """Whether a mirror image has the same slots: as many on both sides, or one for all."""
        return self.num_lanes in (1, 2 * self.left_of_car)


@dataclass(frozen=True)
class LaneAnnotation:
    """The annotation of one image for the official metric.

    Attributes:
        lanes: points (n, 2) each, in pixels of the stored image including ``cut_top``.
        size: (height, width) of the stored image.
        rows: (R,) y at which a prediction needs an x (TuSimple's ``h_samples``), or None.
        pixels: (height, width) uint8, 1 on lanes, for scores of pixels (BDD100K), or None.
    """

    lanes: list[np.ndarray]
    size: tuple[int, int]
    rows: np.ndarray | None = None
    pixels: np.ndarray | None = None


class LaneDataset(Dataset):
    """Base of lane sets; subclasses implement ``__len__``, ``read``, ``annotation`` and ``entry``.

    ``read`` returns images without the ``cut_top`` rows, and labels and lanes accordingly. Lanes of
    a sample are None only if its label is None.

    Attributes:
        metric: the official metric of the set.
    """

    task = "lanes"
    metric: ClassVar[Metric]
    Config: ClassVar[type[DataConfig]] = LaneDataConfig
    config: LaneDataConfig

    @functools.cached_property
    def categories(self) -> dict[str, list[int]]:
        """Indices of the images by category; empty if the set has no categories."""
        return {}

    def annotation(self, index: int) -> LaneAnnotation:
        """The annotated lanes.

        Raises:
            DataError: with the file that is missing or broken.
        """
        raise NotImplementedError

    def entry(self, index: int) -> Path:
        """Path of the image below the root of the set, after which prediction files are named."""
        raise NotImplementedError

    def prediction_entry(self, index: int) -> Path:
        """Path after which the official program expects the prediction file of an image."""
        return self.entry(index)


def is_lane_set(dataset: Dataset) -> TypeGuard[LaneDataset]:
    """Whether a dataset has lanes, and is a ``LaneDataset``."""
    return dataset.task == "lanes"


def lane_classes(num_lanes: int, left: int | None = None) -> tuple[str, ...]:
    """Names of background and slots: CULane's for 2 + 2, else ``left 3 … left 1, right 1 …``.

    Args:
        num_lanes: slots.
        left: those left of the car; None: ``num_lanes // 2``.
    """
    if num_lanes == 1:
        return "background", "lane"
    left = num_lanes // 2 if left is None else left
    if (num_lanes, left) == (4, 2):
        return "background", "left-left", "left", "right", "right-right"
    names = [f"left {number}" for number in range(left, 0, -1)]
    return ("background", *names, *(f"right {n + 1}" for n in range(num_lanes - left)))


def left_of_car(names: Sequence[str]) -> int:
    """Number of slots left of the car, by the names of slots; half where these do not say it."""
    sides = [name.startswith("left") for name in names if name.startswith(("left", "right"))]
    return sum(sides) if sides else len(names) // 2


def lane_palette(num_lanes: int, left: int | None = None) -> np.ndarray:
    """(num_lanes + 1, 3) uint8 RGB: black, then a colour per slot, by its place beside the car."""
    left = num_lanes // 2 if left is None else left
    colors = _COLORS[(np.arange(num_lanes) + len(_COLORS) - left) % len(_COLORS)]
    return np.concatenate([np.zeros((1, 3), np.uint8), colors])
