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
        """The samples at ``indices``, read anew."""
        return [self.dataset.read(index) for index in self.indices]


DATASET_CHECKS: CheckList[DatasetSubject] = CheckList("dataset")


@DATASET_CHECKS.add(
    "The class names define the order of a network's outputs, and the palette the colours of all "
    "label maps."
)
def declaration(subject: DatasetSubject) -> None:
    """`name`, `task`, unique class names, a palette (K, 3) uint8, an ignore index that is not a
    class, a length, and descriptions of the keys of `Config` are defined."""
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
    named = ", ".join(names[ignored : ignored + 1]) if ignored >= 0 else ""
    require(not named, f"ignore_index {ignored} is the class '{named}'")
    require(isinstance(len(data), int) and len(data) > 0, f"it has {len(data)} images")
    fields = type(data).Config.model_fields
    keys = [key for key in fields if key not in DataConfig.model_fields]
    require_finds([key for key in keys if not fields[key].description], "keys without description")


@DATASET_CHECKS.add(
    "Labels of other values or sizes would train the wrong classes, or stop a run in the middle."
)
def samples(subject: DatasetSubject) -> None:
    """Images are (H, W, 3) uint8; labels have their size, are uint8 or int32, and contain only
    class ids and the ignore index."""
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


@DATASET_CHECKS.add(
    "With void labels only, nothing is trained and nothing is scored, without an error."
)
def something_to_learn(subject: DatasetSubject) -> None:
    """If images have labels, some of their pixels belong to a class."""
    labels = [sample.label for sample in subject.samples() if sample.label is not None]
    if not labels:
        raise NotApplicable("its images have no labels")
    ignored = subject.dataset.ignore_index
    found = any((label != ignored).any() for label in labels)
    require(found, f"all pixels of {len(labels)} labels are {ignored}")


@DATASET_CHECKS.add(
    "OpenCV reads blue, green, red. Nothing fails then: the pretrained encoder sees wrong "
    "colours, and the score is lower."
)
def colour_order(subject: DatasetSubject) -> None:
    """Images are red, green, blue, as stored in their files."""
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


@DATASET_CHECKS.add("Prediction files, image sheets and messages refer to images by name.")
def names(subject: DatasetSubject) -> None:
    """Each image has a unique name, and a unique file if it is stored in one."""
    data = subject.dataset
    found = [sample.name for sample in subject.samples()]
    require(all(isinstance(name, str) and name for name in found), f"names: {found}")
    paths = [data.files(index) for index in range(len(data))]
    files = [pair[0] for pair in paths if pair is not None]
    own: Sequence[Path | str] = files or found
    twice = [str(name) for name, number in Counter(own).items() if number > 1]
    require_finds(twice[:3], "there twice")


@DATASET_CHECKS.add(
    "A resumed run equals an uninterrupted one, and two methods train on the same images, only "
    "if an index always means the same image."
)
def index_decides(subject: DatasetSubject) -> None:
    """An index gives the same sample again, in any order, whatever the state of the global
    generators of torch, numpy and Python, which is not changed."""
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
    "Loader processes get a copy of the dataset; it is pickled if they are spawned (macOS, "
    "Windows)."
)
def pickling(subject: DatasetSubject) -> None:
    """A dataset has the same samples after pickling."""
    other = pickle.loads(pickle.dumps(subject.dataset))
    require(len(other) == len(subject.dataset), f"the copy has {len(other)} images")
    for index in subject.indices:
        expected = subject.dataset.read(index)
        _require_same(other.read(index), expected, f"index {index} of a pickled copy")


@DATASET_CHECKS.add(
    "`data.unlabeled: {split: …}` and `data.labels: none` read images whose labels may not exist."
)
def without_labels(subject: DatasetSubject) -> None:
    """`read_unlabelled` returns the same image and name, without label and lanes."""
    for index in subject.indices:
        found, expected = (
            subject.dataset.read_unlabelled(index),
            subject.dataset.read(index),
        )
        require(found.label is None and found.lanes is None, "there is a label")
        same = np.array_equal(found.image, expected.image) and found.name == expected.name
        require(same, f"index {index} is another image without its label")


@DATASET_CHECKS.add(
    "Training crops and stacks the samples, evaluation takes whole images, and the number of "
    "loader processes must not matter."
)
def batches(subject: DatasetSubject) -> None:
    """The loaders of training and evaluation create batches, equal with and without a loader
    process; images of different sizes have a crop or a resize in the configuration."""
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


@DATASET_CHECKS.add("An index beyond the split must not return images of another split.")
def ends(subject: DatasetSubject) -> None:
    """Reading beyond the last image raises an IndexError or a SegKDError."""
    try:
        subject.dataset.read(len(subject.dataset))
    except (IndexError, SegKDError):
        return
    raise AssertionError(f"index {len(subject.dataset)} of {len(subject.dataset)} images is read")


@DATASET_CHECKS.add(
    "A user who has not downloaded the set, or has it elsewhere, needs to see what is expected."
)
def missing_files(subject: DatasetSubject) -> None:
    """With an empty folder as `root` the set raises a SegKDError that shows `expected_tree`."""
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
    "Official metrics use the annotated lanes, networks the label map: both must be the same lanes."
)
def lanes(subject: DatasetSubject) -> None:
    """Lane sets return points (n, 2) for each slot together with a label; `annotation` has the size
    of the stored image; `entry` is a unique relative path."""
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
