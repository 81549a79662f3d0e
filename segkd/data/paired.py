"""Datasets of pairs of files: images and masks."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from segkd.data.base import DataConfig, Dataset, Sample, data_root
from segkd.data.files import existing_form, files_below
from segkd.data.reading import read_image
from segkd.errors import MissingSetError, did_you_mean

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


class PairedDataset(Dataset):
    """Base of datasets on disk; subclasses implement ``_find`` and ``_read_label``.

    Attributes:
        root: folder of the set.
        pairs: image and mask paths in a fixed order; a mask may be missing on disk.
        shared_folders: whether several splits share a folder of masks.
        mask_ending: ending of the names of masks, to find masks without an image.
    """

    shared_folders: bool = False
    mask_ending: str = ".png"

    def __init__(self, config: DataConfig, split: str) -> None:
        super().__init__(config, split)
        self.root = data_root(self.name, config)
        self.pairs = [
            (existing_form(image), None if mask is None else existing_form(mask))
            for image, mask in self._find()
        ]

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> Sample:
        """Image and label of a pair. Raises SampleError."""
        image, mask = self.pairs[index]
        label = None if mask is None else self._read_label(mask)
        return Sample(read_image(image), label, image.name)

    def read_unlabelled(self, index: int) -> Sample:
        """The image of a pair alone. Raises SampleError."""
        path = self.pairs[index][0]
        return Sample(read_image(path), None, path.name)

    def files(self, index: int) -> tuple[Path, Path | None]:
        """Paths of image and mask."""
        return self.pairs[index]

    def _find(self) -> list[tuple[Path, Path | None]]:
        raise NotImplementedError

    def _read_label(self, path: Path) -> np.ndarray:
        """(H, W) class ids and the ignore index."""
        raise NotImplementedError

    def _find_by_folder(
        self, images: str, masks: str, parts: Mapping[str, str]
    ) -> list[tuple[Path, Path | None]]:
        """The jpg files below ``images/PART``, each with the mask of its name in ``masks/PART``.

        Args:
            images, masks: folders below the root.
            parts: PART by split; for other splits the name of the split.

        Raises:
            MissingSetError: there is no image.
        """
        part = parts.get(self.split, self.split)
        folder = self.root / images / part
        found = images_below(folder, (".jpg",)) if folder.is_dir() else []
        if not found:
            hint = "" if self.split in parts else did_you_mean(self.split, parts)
            raise self._missing(folder / "*.jpg", hint)
        return [(image, self.root / masks / part / f"{image.stem}.png") for image in found]

    def _missing(self, looked_for: Path | str, hint: str = "") -> MissingSetError:
        """The error for a split without files."""
        found = f"nothing found at {looked_for}.{hint}"
        if not self.root.is_dir():
            found = f"there is no folder {self.root}."
        places = f"$SEGKD_DATASETS/{self.name} or ./datasets/{self.name}"
        return MissingSetError.of(
            f"dataset '{self.name}', split '{self.split}': {found} Expected, as {self.root}:\n"
            f"{self.expected_tree}",
            elsewhere=f", or put the set into {places}",
        )


def images_below(folder: Path, endings: Iterable[str] = IMAGE_ENDINGS) -> list[Path]:
    """The images below ``folder``, see ``files_below``."""
    return files_below(folder, endings)
