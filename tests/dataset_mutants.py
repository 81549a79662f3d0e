"""A small right dataset of files, one in memory, and mutants that are wrong in one respect each."""

from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np

from segkd.data.base import DataConfig, Dataset, Sample
from segkd.data.lane_base import LaneAnnotation, LaneDataset, lane_classes, lane_palette
from segkd.data.paired import PairedDataset, images_below
from segkd.data.reading import read_image, read_mask

SIZE = (70, 96)


def write_files(root: Path, count: int = 3) -> None:
    """Coloured noise and masks of two classes and void."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        draw = np.random.default_rng(number)
        image = draw.integers(0, 256, (*SIZE, 3)) // (1, 2, 4)
        cv2.imwrite(str(root / f"images/{number}.png"), image.astype(np.uint8))
        mask = np.kron(draw.choice([0, 1, 255], (7, 8)), np.ones((10, 12))).astype(np.uint8)
        cv2.imwrite(str(root / f"masks/{number}.png"), mask)


class Files(PairedDataset):
    """Images and masks of one name in two folders."""

    name = "files"
    classes = ("road", "car")
    palette = np.array([[128, 64, 128], [0, 0, 142]], np.uint8)
    expected_tree = "files/\n  images/0.png\n  masks/0.png"

    def _find(self):
        folder = self.root / "images"
        found = images_below(folder) if folder.is_dir() else []
        if not found:
            raise self._missing(folder)
        return [(path, self.root / "masks" / path.name) for path in found]

    def _read_label(self, path):
        return read_mask(path)


class Drawn(Dataset):
    """Noise in memory, in small steps to override."""

    name = "drawn"
    classes = ("road", "car", "sky")
    palette = np.eye(3, dtype=np.uint8) * 255

    def __len__(self):
        return 5

    def read(self, index):
        if not 0 <= index < len(self):
            raise IndexError(index)
        draw = self.draw(index)
        image = draw.integers(0, 256, (*self.size(index), 3), dtype=np.uint8)
        return Sample(image, self.label(draw, index), self.title(index))

    def draw(self, index):
        return np.random.default_rng([index, self.split == "val"])

    def size(self, index):
        return SIZE

    def label(self, draw, index):
        return draw.choice([0, 1, 2, 255], self.size(index)).astype(np.uint8)

    def title(self, index):
        return f"{self.split}_{index}"


class ClassTwice(Drawn):
    classes = ("road", "car", "road")


class PaletteOfFloats(Drawn):
    palette = np.eye(3)


class IgnoresAClass(Drawn):
    ignore_index = 2


class SilentKey(Drawn):
    class Config(DataConfig):
        noise: int = 3


class UnknownClass(Drawn):
    def label(self, draw, index):
        return super().label(draw, index) + np.uint8(index == 3)


class LabelOfFloats(Drawn):
    def label(self, draw, index):
        return super().label(draw, index).astype(np.float32)


class LabelOfLongs(Drawn):
    def label(self, draw, index):
        return super().label(draw, index).astype(np.int64)


class GreyImages(Drawn):
    def read(self, index):
        sample = super().read(index)
        return Sample(sample.image[..., 0], sample.label, sample.name)


class ImagesOfFloats(Drawn):
    def read(self, index):
        sample = super().read(index)
        return Sample(sample.image / np.float32(255), sample.label, sample.name)


class LabelOfAnotherSize(Drawn):
    def label(self, draw, index):
        return super().label(draw, index)[:-1]


class AllVoid(Drawn):
    def label(self, draw, index):
        return np.full(SIZE, 255, np.uint8)


class BlueFirst(Files):
    def read(self, index):
        sample = super().read(index)
        return Sample(sample.image[..., ::-1], sample.label, sample.name)


class OneNameForAll(Drawn):
    def title(self, index):
        return "image.png"


class FileTwice(Files):
    def _find(self):
        return [*super()._find(), super()._find()[0]]


class RandomImages(Drawn):
    def draw(self, index):
        return np.random.default_rng()


class GlobalRandomness(Drawn):
    def draw(self, index):
        np.random.seed(index)
        return np.random.default_rng(np.random.randint(1000))


class DependsOnTheOrder(Drawn):
    last = 0

    def draw(self, index):
        self.last += 1
        return np.random.default_rng(self.last)


class HoldsALambda(Drawn):
    def __init__(self, config, split):
        super().__init__(config, split)
        self.change = lambda x: x


class ForgetsItsSplit(Drawn):
    def __getstate__(self):
        return self.__dict__ | {"split": "val"}


class LabelsAllTheSame(Drawn):
    def read_unlabelled(self, index):
        return self.read(index)


class OtherImagesWithoutLabels(Files):
    def read_unlabelled(self, index):
        path = self.pairs[0][0]
        return Sample(read_image(path), None, path.name)


class SizesDiffer(Drawn):
    def size(self, index):
        return SIZE[0] + index, SIZE[1]


class WorkersDiffer(Drawn):
    """Draws by the process that it is in."""

    def draw(self, index):
        import os

        return np.random.default_rng([index, os.getpid() % 1000])


class Endless(Drawn):
    def read(self, index):
        sample = super().read(index % len(self))
        return Sample(sample.image, sample.label, self.title(index))


class ShowsNoTree(Files):
    def _missing(self, looked_for, hint=""):
        return FileNotFoundError(looked_for)


class OpensNothing(Files):
    def _find(self):
        return [(path, None) for path in images_below(self.root / "images")]


class Road(LaneDataset):
    """A road in memory with two lanes."""

    name = "road"
    metric = "culane"
    classes = lane_classes(2)
    palette = lane_palette(2)
    categories: ClassVar[dict] = {}

    def __len__(self):
        return 3

    def read(self, index):
        if not 0 <= index < len(self):
            raise IndexError(index)
        image = np.random.default_rng(index).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        label = np.zeros(SIZE, np.uint8)
        label[:, 20:24] = 1
        return Sample(image, label, f"{index}", self.lanes(index))

    def lanes(self, index):
        return (np.array([[22.0, 69], [22, 0]]), None)

    def annotation(self, index):
        return LaneAnnotation([lane for lane in self.lanes(index) if lane is not None], SIZE)

    def entry(self, index):
        return Path(f"{index}.jpg")


class OneSlotTooMany(Road):
    def lanes(self, index):
        return (*super().lanes(index), None)


class LanesOfThreeNumbers(Road):
    def lanes(self, index):
        return (np.zeros((4, 3)), None)


class AnnotatesAnotherSize(Road):
    def annotation(self, index):
        return LaneAnnotation([], (SIZE[0] * 2, SIZE[1] * 2))


class EntryTwice(Road):
    def entry(self, index):
        return Path("a.jpg")
