"""Pascal VOC 2012: 20 objects and background, 1464 training and 1449 validation images.

Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge", IJCV 2010;
http://host.robots.ox.ac.uk/pascal/VOC/voc2012. The 10,582 images of the usual training set are
these and those of SBD: Hariharan et al., "Semantic Contours from Inverse Detectors", ICCV 2011,
http://home.bharathh.info/pubs/codes/SBD/download.html.
"""

from pathlib import Path

import numpy as np
from pydantic import Field

from segkd.data.base import DataConfig
from segkd.data.lists import likeliest
from segkd.data.paired import PairedDataset
from segkd.data.palette import bit_palette
from segkd.data.reading import SampleError, listed, read_ids
from segkd.errors import DataError, did_you_mean
from segkd.texts import read_lines, read_text

AUGMENTED = "train_aug"
_NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse "
    "motorbike person pottedplant sheep sofa train tvmonitor"
)
CLASSES = tuple(_NAMES.split())
_DEVKIT = Path("VOCdevkit") / "VOC2012"
_LISTS = Path("ImageSets") / "Segmentation"


class VOCConfig(DataConfig):
    """Keys of ``data:`` for Pascal VOC."""

    sbd: Path = Field(
        Path("benchmark_RELEASE") / "dataset",
        description="SBD's folder, as given or below root, that `segkd data make voc` reads",
    )


class VOC(PairedDataset):
    """Pascal VOC 2012; splits are its lists ``train``, ``val``, ``trainval``, and ``train_aug``.

    ``train_aug`` has the images of VOC's ``train`` and of SBD that are not in VOC's ``val``. Its
    masks and list are either downloaded (the folder ``SegmentationClassAug``), or written from SBD
    by `segkd data make voc`. VOC's own masks take precedence: unlike SBD's they have void borders.
    Split ``test`` has no labels.
    """

    name = "voc"
    Config = VOCConfig
    config: VOCConfig
    classes = CLASSES
    palette = bit_palette(len(CLASSES))
    shared_folders = True
    expected_tree = """\
voc/                           or VOCdevkit/VOC2012 in it
  JPEGImages/2007_000032.jpg
  SegmentationClass/2007_000032.png
  ImageSets/Segmentation/{train,val,trainval}.txt
  SegmentationClassAug/2007_000256.png         for the split train_aug, with its list
  ImageSets/Segmentation/train_aug.txt         (or trainaug.txt): `segkd data make voc`
  benchmark_RELEASE/dataset/{train,val}.txt    SBD, which that command reads
  benchmark_RELEASE/dataset/cls/2007_000256.mat"""

    def list_file(self, split: str) -> Path:
        """The list file of a split, which need not exist."""
        folder = self.root / _LISTS
        other = folder / "trainaug.txt"
        return other if split == AUGMENTED and other.is_file() else folder / f"{split}.txt"

    def names_of(self, split: str) -> list[str]:
        """Names of the images of a split. Raises DataError if its list is missing."""
        path = self.list_file(split)
        if not path.is_file():
            known = [AUGMENTED, *(file.stem for file in path.parent.glob("*.txt"))]
            hint = did_you_mean(split, known)
            if split == AUGMENTED:
                hint = " `segkd data make voc` writes it from SBD."
            raise self._missing(path, hint)
        # Some lists have lines `/JPEGImages/x.jpg /SegmentationClassAug/x.png`.
        lines = [line for _, line in read_lines(path)]
        return [Path(likeliest(line, self._has_image)).stem for line in lines]

    def sbd_folder(self) -> Path:
        """The folder of SBD's lists and ``cls``."""
        given = self.config.sbd.expanduser()
        return given if given.is_dir() else self.root / given

    def _find(self) -> list[tuple[Path, Path | None]]:
        self.root = self.root / _DEVKIT if (self.root / _DEVKIT).is_dir() else self.root
        pairs = [(self._image(name), self._mask(name)) for name in self.names_of(self.split)]
        if not pairs:
            raise DataError(f"{self.list_file(self.split)}: the list is empty")
        return pairs

    def _has_image(self, entry: str) -> bool:
        return self._image(Path(entry).stem).is_file()

    def _image(self, name: str) -> Path:
        return self.root / "JPEGImages" / f"{name}.jpg"

    def _mask(self, name: str) -> Path | None:
        if self.split == "test":
            return None
        own = self.root / "SegmentationClass" / f"{name}.png"
        if self.split != AUGMENTED or own.is_file():
            return own
        return self.root / "SegmentationClassAug" / f"{name}.png"

    def _read_label(self, path: Path) -> np.ndarray:
        label = read_ids(path)
        if label.ndim != 2:
            raise SampleError(
                path,
                "the mask has colours, expected an indexed or grey PNG of class ids",
                "Use the original masks of VOC and SBD.",
            )
        return label


def augmented_names(dataset: VOC) -> list[str]:
    """Names of SBD's images and of VOC's ``train`` without those of VOC's ``val``, sorted.

    Raises:
        DataError: a list is missing.
    """
    folder, found = dataset.sbd_folder(), set(dataset.names_of("train"))
    for split in ("train", "val"):
        path = folder / f"{split}.txt"
        if not path.is_file():
            raise DataError(
                f"{path}: there is no such list. Unpack SBD's benchmark.tgz in {dataset.root}, or "
                f"set data.sbd=FOLDER to its folder `dataset`"
            )
        found.update(read_text(path).split())
    return sorted(found - set(dataset.names_of("val")))


def read_sbd(path: Path) -> np.ndarray:
    """Reads the class ids (H, W) uint8 of one of SBD's .mat files.

    Raises:
        DataError: scipy is not installed.
        SampleError: the file is missing or is not one of SBD.
    """
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError:
        raise DataError("SBD's .mat files are read with scipy: pip install scipy") from None
    unreadable = (OSError, LookupError, TypeError, ValueError, NotImplementedError, MatReadError)
    try:
        label = loadmat(path, simplify_cells=True)["GTcls"]["Segmentation"]
    except unreadable as error:
        text = f"no segmentation of SBD in it ({type(error).__name__}: {error})"
        raise SampleError(path, text, "Unpack SBD's benchmark.tgz again.") from None
    wrong = np.unique(label[label >= len(CLASSES)]).tolist()
    if wrong:
        raise SampleError(path, f"values {listed(wrong)} are not classes", "Unpack SBD again.")
    return np.ascontiguousarray(label, dtype=np.uint8)
