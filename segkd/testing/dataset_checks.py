"""What a dataset must be for a run: right samples, the same each time, in any process."""

import pickle
import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from segkd.data.base import DataConfig, Dataset, Sample
from segkd.data.lane_base import LaneDataset
from segkd.data.loader import eval_loader, train_loader
from segkd.data.reading import check_sample, read_image
from segkd.errors import SegKDError
from segkd.runtime import preserved_rng
from segkd.structures import Batch
from segkd.testing.check import CheckList, NotApplicable, global_generators, require, require_finds

_CROP = (64, 64)


@dataclass(frozen=True)
class DatasetSubject:
    """An opened split, and how many of its images are read.

    Attributes:
        dataset: the split.
        images: at most so many, spread over the split.
    """

    dataset: Dataset
    images: int = 8

    @property
    def indices(self) -> list[int]:
        """Of the images to read."""
        count = len(self.dataset)
        return sorted({round(place) for place in np.linspace(0, count - 1, self.images)})

    def samples(self) -> list[Sample]:
        return [self.dataset.read(index) for index in self.indices]


DATASET_CHECKS: CheckList[DatasetSubject] = CheckList("dataset")


@DATASET_CHECKS.add(
    "class names order the outputs of every network that is trained on the set; the palette "
    "colours all that is shown; the keys are shown by `segkd list` and in messages."
)
def declaration(subject: DatasetSubject) -> None:
    """`name`, `task`, unique class names, a palette (K, 3) uint8, an ignore index that is no class,
    a length, and a description of each key of `Config` are there."""
    data = subject.dataset
    require(isinstance(data.name, str) and data.name != "", f"{data.name=}")
    require(data.task in ("segmentation", "lanes"), f"{data.task=}")
    names = list(data.classes)
    require(all(isinstance(n, str) and n for n in names) and len(names) > 0, f"classes: {names}")
    twice = [name for name, number in Counter(names).items() if number > 1]
    require_finds(twice, "classes that are there twice")
    palette = np.asarray(data.palette)
    fits = palette.shape == (len(names), 3) and palette.dtype == np.uint8
    require(fits, f"the palette is {palette.dtype} of shape {palette.shape}")
    ignored = data.ignore_index
    require(not 0 <= ignored < len(names), f"ignore_index {ignored} is the class {names[:1]}")
    require(isinstance(len(data), int) and len(data) > 0, f"it has {len(data)} images")
    fields = type(data).Config.model_fields
    keys = [key for key in fields if key not in DataConfig.model_fields]
    require_finds([key for key in keys if not fields[key].description], "keys without description")


@DATASET_CHECKS.add(
    "networks take bytes of three colours; labels of other values or sizes would train wrong "
    "classes, or stop a run in its middle."
)
def samples(subject: DatasetSubject) -> None:
    """Images are (H, W, 3) uint8; labels have their size, are uint8 or int32, and hold class ids
    and the ignore index only."""
    for index, sample in zip(subject.indices, subject.samples(), strict=True):
        require(isinstance(sample, Sample), f"`read` returned a {type(sample).__name__}")
        require(isinstance(sample.image, np.ndarray), f"the image is a {type(sample.image)}")
        label = sample.label
        if label is not None:
            fine = isinstance(label, np.ndarray) and label.dtype in (np.uint8, np.int32)
            kind = getattr(label, "dtype", type(label).__name__)
            require(fine, f"the label of '{sample.name}' is {kind}, expected uint8 or int32")
        try:
            check_sample(subject.dataset, index, sample)
        except SegKDError as error:
            raise AssertionError(str(error)) from error


@DATASET_CHECKS.add("a split in which all is void trains nothing and scores nothing, silently.")
def something_to_learn(subject: DatasetSubject) -> None:
    """If images have labels, some of their pixels are of a class."""
    labels = [sample.label for sample in subject.samples() if sample.label is not None]
    if not labels:
        raise NotApplicable("its images have no labels")
    ignored = subject.dataset.ignore_index
    found = any((label != ignored).any() for label in labels)
    require(found, f"all pixels of {len(labels)} labels are {ignored}")


@DATASET_CHECKS.add(
    "OpenCV reads blue, green, red. Nothing fails: the encoder's weights just see other colours, "
    "and the score is some points lower."
)
def colour_order(subject: DatasetSubject) -> None:
    """Images are red, green, blue, as their files say."""
    data, compared = subject.dataset, 0
    for index in subject.indices:
        files = data.files(index)
        if files is None:
            raise NotApplicable("its images are no files: nothing says what their colours are")
        image, stored = data.read(index).image, read_image(files[0])
        if image.shape == stored.shape and not np.array_equal(stored, stored[..., ::-1]):
            compared += 1
            turned = np.array_equal(image, stored[..., ::-1])
            require(not turned, f"{files[0]} is read as blue, green, red")
    if not compared:
        raise NotApplicable("its images are grey, or of another size than their files")


@DATASET_CHECKS.add(
    "prediction files, sheets and messages name images; two of one name would overwrite each other "
    "and cannot be told apart."
)
def names(subject: DatasetSubject) -> None:
    """Each image has a name of its own, and a file of its own where it is one."""
    data = subject.dataset
    found = [sample.name for sample in subject.samples()]
    require(all(isinstance(name, str) and name for name in found), f"names: {found}")
    paths = [data.files(index) for index in range(len(data))]
    files = [pair[0] for pair in paths if pair is not None]
    own: Sequence[Path | str] = files or found
    twice = [str(name) for name, number in Counter(own).items() if number > 1]
    require_finds(twice[:3], "there twice")


@DATASET_CHECKS.add(
    "a resumed run equals the uninterrupted one, and two methods are compared on the same images, "
    "only if an index always means the same image."
)
def index_decides(subject: DatasetSubject) -> None:
    """An index gives the same sample again, in any order, whatever the global generators hold,
    which are left alone."""
    first = subject.samples()
    with preserved_rng():
        for seed in (1, 2):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            state = global_generators()
            for index, sample in reversed(list(zip(subject.indices, first, strict=True))):
                _require_same(subject.dataset.read(index), sample, f"index {index} again")
            require(global_generators() == state, "it draws from a global generator")


@DATASET_CHECKS.add(
    "loader processes get a copy of the dataset; where they are spawned (macOS, Windows, CUDA) it "
    "is pickled."
)
def pickling(subject: DatasetSubject) -> None:
    """A pickled and unpickled dataset has the same samples."""
    other = pickle.loads(pickle.dumps(subject.dataset))
    require(len(other) == len(subject.dataset), f"the copy has {len(other)} images")
    for index in subject.indices:
        expected = subject.dataset.read(index)
        _require_same(other.read(index), expected, f"index {index} of a pickled copy")


@DATASET_CHECKS.add(
    "`data.unlabeled: {split: …}` and `data.labels: none` read images whose labels may not exist."
)
def without_labels(subject: DatasetSubject) -> None:
    """`read_unlabelled` gives the same image and name, and neither label nor lanes."""
    for index in subject.indices:
        found, expected = (
            subject.dataset.read_unlabelled(index),
            subject.dataset.read(index),
        )
        require(found.label is None and found.lanes is None, "there is a label")
        same = np.array_equal(found.image, expected.image) and found.name == expected.name
        require(same, f"index {index} is another image without its label")


@DATASET_CHECKS.add(
    "training crops and stacks what `read` gives, evaluation takes images as they are; numbers of "
    "loader processes must change nothing."
)
def batches(subject: DatasetSubject) -> None:
    """Training and evaluation loaders make batches of it, with crops and without (where images
    have one size), the same with a loader process and without one."""
    data = subject.dataset
    keys = {"crop": _CROP, "scale": (0.9, 1.1), "on_error": "raise"}
    config = data.config.model_copy(update=keys)
    found = [_first_batch(data, config, workers) for workers in (0, 1)]
    for batch in found:
        require(batch.images.shape == (2, 3, *_CROP), f"images are {tuple(batch.images.shape)}")
        require(batch.images.dtype is torch.uint8, f"images are {batch.images.dtype}")
    pairs = zip(found[0].tensors(), found[1].tensors(), strict=True)
    same = all(torch.equal(one.nan_to_num(), two.nan_to_num()) for one, two in pairs)
    require(same, "a loader process makes other batches")
    batch, _ = next(iter(eval_loader(data, limit=1, config=data.config)))
    require(batch.images.dtype is torch.uint8 and len(batch) == 1, "evaluation gets other images")
    sizes = {sample.image.shape for sample in subject.samples()}
    if len(sizes) > 1 and data.config.crop is None and data.config.resize is None:
        raise AssertionError(
            f"images differ in size ({', '.join(map(str, sorted(sizes)))}), so that they cannot be "
            "stacked as they are: give the set a `crop` or `resize` in its configuration"
        )


def _first_batch(data: Dataset, config: DataConfig, workers: int) -> Batch:
    config = config.model_copy(update={"workers": workers})
    return next(iter(train_loader(data, config=config, batch_size=2, seed=0, start=0, stop=1)))


@DATASET_CHECKS.add("an index beyond the split must not lead into another split's images.")
def ends(subject: DatasetSubject) -> None:
    """Reading beyond the last image raises an IndexError or a SegKDError."""
    try:
        subject.dataset.read(len(subject.dataset))
    except (IndexError, SegKDError):
        return
    raise AssertionError(f"index {len(subject.dataset)} of {len(subject.dataset)} images is read")


@DATASET_CHECKS.add(
    "whoever has not fetched the set, or has it elsewhere, needs to see what belongs where."
)
def missing_files(subject: DatasetSubject) -> None:
    """With an empty folder as `root` opening it raises a SegKDError that shows `expected_tree`."""
    data = subject.dataset
    if data.files(0) is None:
        raise NotApplicable("its images are no files")
    require(bool(data.expected_tree), "`expected_tree` is empty")
    with tempfile.TemporaryDirectory() as folder:
        config = data.config.model_copy(update={"root": Path(folder)})
        try:
            type(data)(config, data.split)
        except SegKDError as error:
            shown = data.expected_tree.splitlines()[-1].strip() in str(error)
            require(shown, f"the message does not show `expected_tree`: {error}")
            return
    raise AssertionError("an empty folder is opened without a word")


@DATASET_CHECKS.add(
    "official metrics read lanes, networks read the mask: both must mean the same lanes."
)
def lanes(subject: DatasetSubject) -> None:
    """Lane sets give points (n, 2) by slot with a label, none without; `annotation` has the stored
    size; `entry` is a relative path of its own for each image."""
    data = subject.dataset
    if data.task != "lanes":
        raise NotApplicable("it is no lane set")
    if not isinstance(data, LaneDataset):
        raise AssertionError("it does not derive from LaneDataset")
    slots = len(data.classes) - 1
    for index, sample in zip(subject.indices, subject.samples(), strict=True):
        require((sample.lanes is None) == (sample.label is None), f"'{sample.name}': lanes alone")
        if sample.lanes is not None:
            require(len(sample.lanes) == slots, f"{len(sample.lanes)} lanes in {slots} slots")
            shapes = [lane.shape for lane in sample.lanes if lane is not None]
            require(all(len(s) == 2 and s[1] == 2 for s in shapes), f"lanes of shapes {shapes}")
        stored = data.annotation(index).size
        height = sample.image.shape[0] + getattr(data.config, "cut_top", 0)
        seen = (height, sample.image.shape[1])
        require(tuple(stored) == seen, f"annotations are of {stored}, the image is {seen}")
    entries = [data.entry(index) for index in range(len(data))]
    require(len(set(entries)) == len(entries), "entries are there twice")
    require(not any(entry.is_absolute() for entry in entries), f"{entries[0]} is absolute")


def _require_same(found: Sample, expected: Sample, what: str) -> None:
    """Raises AssertionError unless both samples are equal in all that they hold."""
    require(found.name == expected.name, f"{what}: the name is {found.name}, not {expected.name}")
    pairs: list[tuple[str, np.ndarray | None, np.ndarray | None]] = [
        ("image", found.image, expected.image),
        ("label", found.label, expected.label),
    ]
    if found.lanes is None or expected.lanes is None:
        require(found.lanes is expected.lanes, f"{what}: lanes are there once")
    else:
        slots = zip(found.lanes, expected.lanes, strict=True)
        pairs += [(f"lane {number}", one, two) for number, (one, two) in enumerate(slots)]
    for part, one, two in pairs:
        if one is None or two is None:
            require(one is two, f"{what}: the {part} is there once")
        else:
            require(np.array_equal(one, two, equal_nan=one.dtype.kind == "f"), f"{what}: {part}")
