"""COCO-Stuff 164K: 80 things and 91 stuff classes, 118,287 and 5,000 images.

Caesar, Uijlings, Ferrari, "COCO-Stuff: Thing and Stuff Classes in Context", CVPR 2018,
arXiv 1612.03716; https://github.com/nightrome/cocostuff. Needed are COCO's train2017.zip and
val2017.zip, and stuffthingmaps_trainval2017.zip.
"""

from pathlib import Path

import numpy as np

from segkd.data.coco_stuff_classes import CLASSES, LABEL_IDS
from segkd.data.paired import PairedDataset
from segkd.data.palette import bit_palette
from segkd.data.reading import SampleError, listed, read_ids

_VOID, _UNKNOWN = 255, 254
_FOLDERS = {"train": "train2017", "val": "val2017"}
_TO_CLASS = np.full(256, _UNKNOWN, np.uint8)
_TO_CLASS[LABEL_IDS - 1] = np.arange(len(CLASSES))  # the maps store the id minus 1
_TO_CLASS[_VOID] = _VOID


class COCOStuff(PairedDataset):
    """COCO-Stuff 164K with its 171 classes: the 182 ids without the 11 that no image has."""

    name = "coco_stuff"
    classes = CLASSES
    palette = bit_palette(len(CLASSES) + 1)[1:]  # without black
    expected_tree = """\
coco_stuff/
  images/{train2017,val2017}/000000000139.jpg
  stuffthingmaps/{train2017,val2017}/000000000139.png"""

    def _find(self) -> list[tuple[Path, Path | None]]:
        return self._find_by_folder("images", "stuffthingmaps", _FOLDERS)

    def _read_label(self, path: Path) -> np.ndarray:
        import cv2

        ids = read_ids(path)
        repair = "Use the maps of stuffthingmaps_trainval2017.zip as they are."
        if ids.ndim != 2:
            raise SampleError(path, "the mask has colours, expected ids 0 to 181 and 255", repair)
        label = cv2.LUT(ids.astype(np.uint8), _TO_CLASS)
        if (label == _UNKNOWN).any():
            found = np.unique(ids[label == _UNKNOWN]).tolist()
            raise SampleError(path, f"values {listed(found)} are no classes", repair)
        return label
