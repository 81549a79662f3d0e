"""The base of datasets: images and label maps by index, and their classes."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    field_validator,
    model_validator,
)

Size = tuple[PositiveInt, PositiveInt]
Labels = Literal["required", "optional", "none"]  # of training
FILL = (124, 116, 104)  # of padding: ImageNet's mean colour, near 0 after normalisation


class UnlabeledConfig(BaseModel):
    """The block ``data.unlabeled:``: images without labels, for methods only.

    Either ``root`` without ``split``: any images below a folder. Or a ``split`` of this dataset, or
    of the dataset ``name``, whose labels are ignored; further keys are keys of that dataset.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    root: Path | None = Field(None, description="folder of images, or of the dataset `name`")
    list: Path | None = Field(None, description="text file of the images to take below `root`")
    name: str | None = Field(None, description="a dataset; default, with `split`: data.name")
    split: str | None = Field(None, description="of the dataset")
    share: float = Field(0.5, ge=0.0, le=1.0, description="of the images of a step")
    rows: tuple[float, float] | None = Field(
        None,
        description="of a folder's images: those kept, as shares of the height, e.g. [0.3, 0.9]; "
        "default: all below `cut_top`",
    )

    @property
    def of_dataset(self) -> bool:
        """Whether the images are those of a dataset, not of a folder."""
        return self.name is not None or self.split is not None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.name is not None and self.split is None:
            raise ValueError(f"name the split of '{self.name}', e.g. split: train")
        if self.rows is not None and not 0 <= self.rows[0] < self.rows[1] <= 1:
            raise ValueError("`rows` are two shares of the height, top first, e.g. [0.3, 0.9]")
        if self.rows is not None and self.of_dataset:
            raise ValueError("`rows` are for images of a folder: give `root` without `split`")
        if self.list is not None and (self.of_dataset or self.root is None):
            raise ValueError(
                "`list` selects images below `root`; for a dataset give the list file as `split`"
            )
        if self.model_extra and not self.of_dataset:
            own = ", ".join(type(self).model_fields)
            raise ValueError(
                f"unknown key '{next(iter(self.model_extra))}'. Known: {own}; with `split` also "
                "the keys of its dataset"
            )
        if shared := keys_of_any_set(self.model_extra):
            raise ValueError(f"`{shared[0]}` is a key of `data`, for images of both kinds")
        return self


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
        0, description="MiB per loader process, for images and labels that all share; training"
    )
    resize: Size | None = Field(None, description="images are resized to this size when read")
    crop: Size | None = Field(None, description="training crop; None: as large as the image")
    scale: tuple[PositiveFloat, PositiveFloat] = Field((0.5, 2.0), description="random, training")
    pad: bool = Field(True, description="pad images smaller than the crop")
    flip: float = Field(0.5, ge=0.0, le=1.0, description="probability of a horizontal flip")
    color_jitter: float = Field(0.0, ge=0.0, le=1.0, description="strength; 0: off")
    augment: list[Any] = Field(
        [], description="transforms of albumentations, after the others; training"
    )
    on_error: Literal["raise", "skip"] = Field("raise", description="unreadable files")
    labels: Labels = Field(
        "required", description="of training; optional: masks may be missing; none: not read"
    )
    unlabeled: SerializeAsAny[UnlabeledConfig] | None = Field(
        None, description="images without labels, in addition to the training split"
    )

    @property
    def all_unlabelled(self) -> bool:
        """Whether the training split is not read: all images are those of ``unlabeled``."""
        return self.unlabeled is not None and self.unlabeled.share == 1

    @field_validator("scale")
    @classmethod
    def _ascending(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if scale[0] > scale[1]:
            raise ValueError(f"the smaller factor must come first: [{scale[1]:g}, {scale[0]:g}]")
        return scale


def keys_of_any_set(keys: Mapping[str, Any] | None) -> list[str]:
    """Those of ``keys`` that a block ``data:`` has whatever its dataset, like ``crop``.

    A set within such a block, e.g. ``data.unlabeled``, has its dataset's own keys alone.
    """
    return [key for key in keys or () if key in DataConfig.model_fields]


@dataclass
class Sample:
    """One stored image with its annotation.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        label: (H, W) uint8 or int32 class ids and the ignore index; None without annotation.
        name: a short readable name, e.g. the file name without folder.
        lanes: of lane sets only: by slot (class id minus 1) the points (n, 2) of a lane, x and y
            in pixels of ``image`` from bottom to top; None where the slot has no lane. Lanes of
            one slot are separated by a row of NaN.
    """

    image: np.ndarray
    label: np.ndarray | None
    name: str
    lanes: tuple[np.ndarray | None, ...] | None = None


class Dataset:
    """Base of all datasets; subclasses implement ``__len__`` and ``read``.

    Args:
        config: the block ``data:``.
        split: name of the split.

    Attributes:
        name: in configs.
        task: determines how a network is scored.
        classes: K class names; the position is the class id.
        palette: (K, 3) uint8 RGB.
        ignore_index: the label of void pixels.
        unlabelled: number of images that are known to have no label.
        expected_tree: the required folders and files, shown when they are missing.
    """

    name: str
    task: Literal["segmentation", "lanes"] = "segmentation"
    Config: ClassVar[type[DataConfig]] = DataConfig
    expected_tree: ClassVar[str] = ""
    classes: tuple[str, ...]
    palette: np.ndarray
    ignore_index: int = 255
    unlabelled: int = 0

    def __init__(self, config: DataConfig, split: str) -> None:
        self.config, self.split = config, split

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, index: int) -> Sample:
        """The stored image and label.

        Raises:
            DataError: with the file that is missing or damaged.
        """
        raise NotImplementedError

    def read_stored(self, index: int) -> Sample:
        """``read`` for those who look at a window: image and label may be a ``packing.Packed``.

        Raises:
            DataError: as ``read``.
        """
        return self.read(index)

    def read_unlabelled(self, index: int) -> Sample:
        """The stored image without its label, which need not exist.

        Raises:
            DataError: as ``read``.
        """
        return replace(self.read(index), label=None, lanes=None)

    def files(self, index: int) -> tuple[Path, Path | None] | None:
        """Paths of image and label; None for sets without files."""
        return None


def data_root(name: str, config: DataConfig) -> Path:
    """The folder of a dataset, which need not exist.

    It is ``data.root``, else ``$SEGKD_DATASETS/<name>``, else ``./datasets/<name>``.
    """
    if config.root is not None:
        return config.root.expanduser()
    return Path(os.environ.get("SEGKD_DATASETS") or "datasets").expanduser() / name


def same_validation(one: DataConfig, other: DataConfig) -> bool:
    """Whether two blocks mean the same images and classes in an evaluation.

    That is the dataset, its folder, the split and the dataset's own keys; how images are resized
    and what concerns the training may differ.
    """
    if one.name != other.name or one.val_split != other.val_split:
        return False
    if data_root(one.name, one) != data_root(other.name, other):
        return False
    general = set(DataConfig.model_fields)
    return one.model_dump(exclude=general) == other.model_dump(exclude=general)
