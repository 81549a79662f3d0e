"""What a dataset is: images and label maps by index, and the facts about its classes."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

Size = tuple[PositiveInt, PositiveInt]


class DataConfig(BaseModel):
    """The block ``data:``. A dataset's ``Config`` adds its own keys. Sizes are (height, width)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="dataset: see `segkd list datasets`")
    root: Path | None = Field(None, description="folder of this set; default: <data root>/<name>")
    train_split: str = "train"
    val_split: str = "val"
    batch_size: PositiveInt = Field(8, description="global: over all processes, per step")
    workers: NonNegativeInt = Field(2, description="loader processes per training process")
    cache: NonNegativeInt = Field(
        0, description="MiB of images and labels that each loader process keeps; training"
    )
    resize: Size | None = Field(None, description="images are brought to this size when read")
    crop: Size | None = Field(None, description="training crop; None: as large as the image")
    scale: tuple[PositiveFloat, PositiveFloat] = Field((0.5, 2.0), description="random, training")
    pad: bool = Field(True, description="pad images smaller than the crop")
    flip: float = Field(0.5, ge=0.0, le=1.0, description="probability of a horizontal flip")
    color_jitter: float = Field(0.0, ge=0.0, le=1.0, description="strength; 0: off")
    on_error: Literal["raise", "skip"] = Field("raise", description="unreadable files")

    @field_validator("scale")
    @classmethod
    def _ascending(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if scale[0] > scale[1]:
            raise ValueError(f"the smaller factor comes first: [{scale[1]:g}, {scale[0]:g}]")
        return scale


@dataclass
class Sample:
    """One image as it is stored.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        label: (H, W) uint8 or int32 class ids and the ignore index; None without annotation.
        name: a short readable identity, e.g. a file name without folder.
        lanes: of lane sets only: by slot (class id minus 1) the points (n, 2) of a lane as x, y
            in pixels of ``image``, from bottom to top; None where the slot has no lane. Where
            lanes share a slot, a row of NaN parts them.
    """

    image: np.ndarray
    label: np.ndarray | None
    name: str
    lanes: tuple[np.ndarray | None, ...] | None = None


class Dataset:
    """Base of all datasets; ``__len__`` and ``read`` must be written.

    Attributes:
        name: in configs.
        task: decides how a network is scored.
        classes: K class names; the position is the class id.
        palette: (K, 3) uint8 RGB.
        ignore_index: the label of void pixels.
        expected_tree: the folders and files that must be there, shown when they are missing.
    """

    name: ClassVar[str]
    task: ClassVar[Literal["segmentation", "lanes"]] = "segmentation"
    Config: ClassVar[type[DataConfig]] = DataConfig
    expected_tree: ClassVar[str] = ""
    classes: tuple[str, ...]
    palette: np.ndarray
    ignore_index: int = 255

    def __init__(self, config: DataConfig, split: str) -> None:
        self.config, self.split = config, split

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, index: int) -> Sample:
        """The stored image and label. Raises DataError that names the file."""
        raise NotImplementedError

    def files(self, index: int) -> tuple[Path, Path | None] | None:
        """Paths of image and label, or None for sets that are made on the fly."""
        return None


def data_root(name: str, config: DataConfig) -> Path:
    """The folder of a dataset: ``data.root``, else ``$SEGKD_DATASETS/<name>``, else
    ``./datasets/<name>``. It need not exist."""
    if config.root is not None:
        return config.root.expanduser()
    return Path(os.environ.get("SEGKD_DATASETS") or "datasets").expanduser() / name
