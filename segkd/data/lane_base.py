"""What a lane dataset is: images, lanes in slots, and annotations as official metrics read them.

A slot is a lane's identity: slot i has class id i + 1, class 0 is background. Points are x, y in
pixels. Networks see class maps (lanes painted ``lane_width`` wide) and existence by slot; metrics
see the annotated lanes themselves.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeGuard

import numpy as np
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, field_validator

from segkd.data.base import DataConfig, Dataset

_COLORS = np.array(  # from the middle to the right, and round from the far left to the middle
    [
        (255, 80, 80),
        (255, 200, 0),
        (200, 80, 255),
        (255, 140, 190),
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
    lane_width: PositiveInt = Field(16, description="of painted lanes, pixels of the stored image")
    cut_top: NonNegativeInt = Field(0, description="rows of the stored image that nobody sees")
    rotation: NonNegativeFloat = Field(0.0, description="random, training: at most so many degrees")

    @field_validator("num_lanes")
    @classmethod
    def _mirrored(cls, num_lanes: int) -> int:
        if num_lanes > 1 and num_lanes % 2:
            raise ValueError(
                f"{num_lanes} slots have no mirror image: use an even number (as many left of the "
                f"car as right of it), or 1 for lanes without identity"
            )
        return num_lanes


@dataclass(frozen=True)
class LaneAnnotation:
    """What a prediction for one image is compared with.

    Attributes:
        lanes: (n, 2) points each, in pixels of the stored image before ``cut_top``.
        size: height and width of the stored image.
        rows: y at which a prediction must answer (TuSimple's ``h_samples``), or None.
        pixels: (height, width) uint8, 1 on lanes, where the score counts pixels (BDD100K), or None.
    """

    lanes: list[np.ndarray]
    size: tuple[int, int]
    rows: np.ndarray | None = None
    pixels: np.ndarray | None = None


class LaneDataset(Dataset):
    """Base of all lane sets; ``__len__``, ``read``, ``annotation`` and ``entry`` must be written.

    ``read`` answers images without the ``cut_top`` rows, and labels and lanes to match. The lanes
    of a sample are None only where its label is None.

    Attributes:
        metric: the official score of the set.
    """

    task = "lanes"
    metric: ClassVar[Literal["culane", "tusimple", "bdd100k"]]
    Config: ClassVar[type[DataConfig]] = LaneDataConfig
    config: LaneDataConfig

    @functools.cached_property
    def categories(self) -> dict[str, list[int]]:
        """Indices of the images by category; empty if the set has no categories."""
        return {}

    def annotation(self, index: int) -> LaneAnnotation:
        """The annotated lanes. Raises DataError that names the file."""
        raise NotImplementedError

    def entry(self, index: int) -> Path:
        """Path of the image below the set's root: prediction files are named after it."""
        raise NotImplementedError


def is_lane_set(dataset: Dataset) -> TypeGuard[LaneDataset]:
    """Whether a dataset has lanes, and so is a ``LaneDataset``."""
    return dataset.task == "lanes"


def lane_classes(num_lanes: int) -> tuple[str, ...]:
    """Names of background and slots: CULane's for 4, ``left 3 … left 1, right 1 …`` for others."""
    if num_lanes == 1:
        return "background", "lane"
    if num_lanes == 4:
        return "background", "left-left", "left", "right", "right-right"
    half = range(1, num_lanes // 2 + 1)
    left = [f"left {number}" for number in reversed(half)]
    return ("background", *left, *(f"right {number}" for number in half))


def lane_palette(num_lanes: int) -> np.ndarray:
    """(num_lanes + 1, 3) uint8 RGB: black, then a colour per slot."""
    colors = _COLORS[(np.arange(num_lanes) + len(_COLORS) - num_lanes // 2) % len(_COLORS)]
    return np.concatenate([np.zeros((1, 3), np.uint8), colors])
