"""ADE20K as the scene parsing benchmark has it: 150 classes, 20,210 and 2,000 images.

Zhou et al., "Scene Parsing through ADE20K Dataset", CVPR 2017 (IJCV 2019, arXiv 1608.05442);
http://sceneparsing.csail.mit.edu (ADEChallengeData2016.zip).
"""

from pathlib import Path

import numpy as np

from segkd.data.ade20k_classes import CLASSES, PALETTE
from segkd.data.paired import PairedDataset
from segkd.data.reading import SampleError, listed, read_ids, wrong_values

_RELEASE = "ADEChallengeData2016"
_FOLDERS = {"train": "training", "val": "validation"}
# Stored are 0 for void and 1 to 150 for the classes.
_TO_CLASS = np.concatenate([[255], np.arange(len(CLASSES)), np.full(105, 255)]).astype(np.uint8)


class ADE20K(PairedDataset):
    """ADE20K with the 150 classes of the scene parsing benchmark; 0 in the masks is void."""

    name = "ade20k"
    classes = CLASSES
    palette = PALETTE
    expected_tree = """\
ade20k/                        or ADEChallengeData2016 in it
  images/training/ADE_train_00000001.jpg
  images/validation/ADE_val_00000001.jpg
  annotations/training/ADE_train_00000001.png
  annotations/validation/ADE_val_00000001.png"""

    def _find(self) -> list[tuple[Path, Path | None]]:
        self.root = self.root / _RELEASE if (self.root / _RELEASE).is_dir() else self.root
        return self._find_by_folder("images", "annotations", _FOLDERS)

    def _read_label(self, path: Path) -> np.ndarray:
        import cv2

        ids = read_ids(path)
        if ids.ndim != 2:
            text = "the mask has colours, expected ids 0 to 150"
            raise SampleError(path, text, f"Use the annotations of {_RELEASE}.zip.")
        wrong = wrong_values(ids, len(CLASSES) + 1, 0)
        if wrong:
            text = f"values {listed(wrong)} are no ids of the 150 classes"
            raise SampleError(path, text, f"Use the annotations of {_RELEASE}.zip.")
        return cv2.LUT(ids.astype(np.uint8), _TO_CLASS)
