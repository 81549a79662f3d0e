"""What a lane dataset is: images, lanes in slots, and annotations as the official metrics read them.

A slot is a lane's identity: slot i has class id i + 1, class 0 is background. Points are x, y in
pixels. Networks see class maps (lanes painted ``lane_width`` wide) and existence by slot; metrics
see the annotated lanes themselves.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from segkd.data.base import DataConfig, Dataset


class LaneDataConfig(DataConfig):
    """Keys that every lane set has. Sizes are (height, width)."""

    num_lanes: PositiveInt = Field(4, description="slots: classes without the background")
    lane_width: PositiveInt = Field(16, description="of painted lanes, pixels of the stored image")
    cut_top: NonNegativeInt = Field(0, description="rows of the stored image that nobody sees")
    rotation: NonNegativeFloat = Field(0.0, description="random, training: at most so many degrees")


@dataclass(frozen=True)
class LaneAnnotation:
    """What a prediction for one image is compared with.

    Attributes:
        lanes: (n, 2) points each, in pixels of the stored image before ``cut_top``.
        size: height and width of the stored image.
        rows: y at which a prediction must answer (TuSimple's ``h_samples``), or None.
    """

    lanes: list[np.ndarray]
    size: tuple[int, int]
    rows: np.ndarray | None = None


class LaneDataset(Dataset):
    """Base of all lane sets; ``__len__``, ``read``, ``annotation`` and ``entry`` must be written.

    ``read`` answers images without the ``cut_top`` rows, and labels and lanes to match.

    Attributes:
        metric: the official score of the set.
        categories: by name, indices of the images; empty if the set has none.
    """

    task = "lanes"
    metric: ClassVar[Literal["culane", "tusimple", "bdd100k"]]
    Config: ClassVar[type[DataConfig]] = LaneDataConfig
    config: LaneDataConfig
    categories: dict[str, list[int]]

    def annotation(self, index: int) -> LaneAnnotation:
        """The annotated lanes. Raises DataError that names the file."""
        raise NotImplementedError

    def entry(self, index: int) -> Path:
        """Path of the image below the set's root: prediction files are named after it."""
        raise NotImplementedError
