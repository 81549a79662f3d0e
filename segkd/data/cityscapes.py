"""Cityscapes: 19 classes, 2975 training and 500 validation images of 1024x2048.

Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016,
arXiv 1604.01685; https://www.cityscapes-dataset.com (registration required). Unpack
leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip into one folder.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from segkd.data.base import DataConfig, Sample
from segkd.data.decoded_files import read_pixels
from segkd.data.files import files_below, is_litter
from segkd.data.packing import array_of
from segkd.data.paired import PairedDataset
from segkd.data.reading import SampleError, listed, read_ids, wrong_values
from segkd.errors import did_you_mean

# id in labelIds files, class, colour; the row is the train id
_TABLE = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
CLASSES = tuple(row[1] for row in _TABLE)
PALETTE = np.array([row[2] for row in _TABLE], np.uint8)
LABEL_IDS = np.array([row[0] for row in _TABLE], np.uint8)
_HIGHEST_ID = 33
_IMAGE, _LABEL_IDS, _TRAIN_IDS = (
    "_leftImg8bit.png",
    "_gtFine_labelIds.png",
    "_gtFine_labelTrainIds.png",
)
TO_TRAIN_ID = np.full(256, 255, np.uint8)
TO_TRAIN_ID[LABEL_IDS] = np.arange(len(LABEL_IDS))
TO_LABEL_ID = np.zeros(256, np.uint8)  # void becomes id 0, "unlabeled"
TO_LABEL_ID[: len(LABEL_IDS)] = LABEL_IDS


class CityscapesConfig(DataConfig):
    """Keys of ``data:`` for Cityscapes."""

    decoded: bool | Path = Field(
        False,
        description="read decoded images, made by `segkd data make cityscapes --cache`, from "
        "this folder; true: <root>/decoded",
    )


class Cityscapes(PairedDataset):
    """Cityscapes with fine annotations, in its own layout.

    Splits are the folders below ``leftImg8bit``. Masks are ``labelIds``, or ``labelTrainIds``
    where those are missing. The official test masks are dummies: split ``test`` has no labels.
    """

    name = "cityscapes"
    Config = CityscapesConfig
    config: CityscapesConfig
    classes = CLASSES
    palette = PALETTE
    mask_ending = _LABEL_IDS
    expected_tree = """\
cityscapes/
  leftImg8bit/{train,val,test}/<city>/<city>_000000_000019_leftImg8bit.png
  gtFine/{train,val}/<city>/<city>_000000_000019_gtFine_labelIds.png
  decoded/                     optional: `segkd data make cityscapes --cache`"""

    def cache_folder(self) -> Path | None:
        """The folder of decoded arrays; None if they are not used."""
        decoded = self.config.decoded
        if isinstance(decoded, Path):
            return decoded.expanduser()
        return self.root / "decoded" if decoded else None

    def read(self, index: int) -> Sample:
        """Image and label, from decoded files if ``data.decoded`` is set. Raises SampleError."""
        sample = self.read_stored(index)
        label = None if sample.label is None else array_of(sample.label)
        return replace(sample, image=array_of(sample.image), label=label)

    def read_stored(self, index: int) -> Sample:
        """``read``, but image and label may be ``Packed``. Raises SampleError."""
        folder = self.cache_folder()
        if folder is None:
            return super().read(index)
        image, label = self.cache_files(index, folder)
        pixels: Any = read_pixels(image, self.pairs[index][0])
        ids: Any = None if label is None else read_pixels(label, self.pairs[index][1])
        return Sample(pixels, ids, self.pairs[index][0].name)

    def read_unlabelled(self, index: int) -> Sample:
        """The image alone, as ``read`` returns it. Raises SampleError."""
        folder = self.cache_folder()
        if folder is None:
            return super().read_unlabelled(index)
        image = array_of(read_pixels(self.cache_files(index, folder)[0], self.pairs[index][0]))
        return Sample(image, None, self.pairs[index][0].name)

    def cache_files(self, index: int, folder: Path) -> tuple[Path, Path | None]:
        """Paths without suffix of the decoded image and label of one sample below ``folder``."""
        image, mask = self.pairs[index]
        stem = image.name.removesuffix(_IMAGE)
        city = folder / self.split / image.parent.name
        return city / f"{stem}_image", None if mask is None else city / f"{stem}_label"

    def _find(self) -> list[tuple[Path, Path | None]]:
        folder = self.root / "leftImg8bit" / self.split
        images = [path for path in files_below(folder, (_IMAGE,)) if path.parent.parent == folder]
        if not images:
            splits = [path.name for path in folder.parent.glob("*/") if not is_litter(path.name)]
            hint = did_you_mean(self.split, splits) if splits else ""
            raise self._missing(folder / "<city>" / f"*{_IMAGE}", hint)
        return [(image, self._mask_of(image)) for image in images]

    def _mask_of(self, image: Path) -> Path | None:
        if self.split == "test":
            return None
        folder = self.root / "gtFine" / self.split / image.parent.name
        stem = image.name.removesuffix(_IMAGE)
        path, other = folder / (stem + _LABEL_IDS), folder / (stem + _TRAIN_IDS)
        return other if not path.exists() and other.exists() else path

    def _read_label(self, path: Path) -> np.ndarray:
        import cv2

        ids = read_ids(path)
        if ids.ndim != 2:
            raise SampleError(path, "the mask has colours", "Use the labelIds files.")
        if path.name.endswith(_TRAIN_IDS):
            return ids
        wrong = wrong_values(ids, _HIGHEST_ID + 1, 255)
        if wrong:
            text = f"values {listed(wrong)} are not label ids of Cityscapes (0 to {_HIGHEST_ID})"
            raise SampleError(path, text, "Fetch the file again.")
        # Files of 16 bits are valid, too, but OpenCV looks up bytes only.
        return cv2.LUT(ids.astype(np.uint8, copy=False), TO_TRAIN_ID)
