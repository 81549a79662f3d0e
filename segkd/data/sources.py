"""From samples to batches, as in the workers of a loader: read, check, augment, stack."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import numpy as np
import torch
import torch.utils.data

from segkd.data.base import DataConfig, Dataset, Sample
from segkd.data.cached_outputs import CachedItem, CachedOutputs, CacheFolder, Views, batched
from segkd.data.lane_masks import Slots, present
from segkd.data.packing import Packed, array_of
from segkd.data.prediction_crops import Store, StoredCrops
from segkd.data.reading import check_sample, image_name, size_text
from segkd.data.sample_cache import SampleCache
from segkd.data.transforms import TrainTransform, resize_image
from segkd.data.unlabeled import Joined
from segkd.errors import DataError, SegKDError
from segkd.structures import Batch

_REPLACEMENTS = 20  # consecutive unreadable samples after which training stops
Key = TypeVar("Key")


@dataclass
class _Item:
    """One sample, ready for stacking."""

    image: np.ndarray
    label: np.ndarray | None
    not_padding: np.ndarray
    lanes: Slots | None
    index: int
    name: str
    file: str
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    cached: CachedItem = field(default_factory=CachedItem)


@dataclass
class Load:
    """The result of a worker for one batch.

    Attributes:
        batch: the stacked samples; None if there are none.
        names: of the images.
        skipped: messages about skipped samples.
        error: a mistake of the user, or None.
    """

    batch: Batch | None = None
    names: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    error: SegKDError | None = None

    def pin_memory(self) -> "Load":
        """Page-locks the tensors of the batch; called by torch."""
        if self.batch is not None:
            self.batch = self.batch.pin_memory()
        return self


class SampleSource(torch.utils.data.Dataset[Load], Generic[Key]):
    """Base of the datasets that run in the workers: a list of keys to one ``Load``.

    Args:
        dataset: of the samples.

    Attributes:
        always_labels: whether a batch without labels gets void ones.
        beat: called before each sample, as a sign of life; or None.
    """

    always_labels = False
    beat: Callable[[], None] | None = None

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitems__(self, keys: list[Key]) -> list[Load]:
        load = Load()
        try:
            items = [item for key in keys if (item := self._begin(key, load)) is not None]
            load.names = [item.name for item in items]
            load.batch = _stack(items, self.dataset, self.always_labels) if items else None
        except SegKDError as error:  # torch would wrap it in a traceback
            load.error = error
        return [load]

    def _begin(self, key: Key, load: Load) -> _Item | None:
        if self.beat is not None:
            self.beat()
        return self._item(key, load)

    def _item(self, key: Key, load: Load) -> _Item | None:
        raise NotImplementedError

    def _read(self, index: int) -> Sample:
        sample = self.dataset.read(index)
        check_sample(self.dataset, index, sample)
        return sample


class TrainSource(SampleSource[tuple[int, int]]):
    """Augmented samples. Keys are (epoch, index); samples are cached up to ``data.cache``.

    Args:
        dataset: of the samples.
        config: the block ``data:``.
        seed: determines augmentation, together with epoch and index.
        stores: stored predictions by teacher.
        caches: stored outputs by teacher.
        views: the views that images are cut into; None: another one in each epoch.
    """

    always_labels = True

    def __init__(
        self,
        dataset: Dataset,
        config: DataConfig,
        seed: int,
        stores: Mapping[str, Store] | None = None,
        caches: Mapping[str, CacheFolder] | None = None,
        views: Views | None = None,
    ) -> None:
        super().__init__(dataset)
        self.crops = StoredCrops(stores or {}, config)
        self.cached, self.views = CachedOutputs(caches or {}, config), views
        self.seed, self.skip = seed, config.on_error == "skip"
        processes = max(config.workers, 1)
        self._kept = SampleCache(len(dataset), config.cache, processes) if config.cache else None
        self._checked = np.zeros(len(dataset), bool)
        self._whole = bool(stores or caches)  # they look at the whole stored image
        self.transform = TrainTransform(config, dataset.ignore_index, dataset.task == "lanes")

    def _item(self, key: tuple[int, int], load: Load) -> _Item:
        (epoch, index), view = key, 0
        rng = np.random.default_rng([self.seed, epoch, index])
        for _ in range(_REPLACEMENTS):
            try:
                sample = self._read(index)
                seed = int(rng.integers(2**62))
                if self.views is not None:
                    view, seed = self.views.of(epoch, index)
                parts = self.crops(self.dataset, index, sample, seed)
            except DataError as error:
                if not self.skip:
                    raise
                load.skipped.append(str(error))
                index = self._replacement(index, rng)
                continue
            drawn = self.transform.with_lanes(sample.image, sample.label, sample.lanes, seed)
            file = image_name(self.dataset, index, sample)
            cached = self.cached(sample.image, drawn[0], index, view, seed)
            return _Item(*drawn, index, sample.name, file, parts, cached)
        raise DataError(
            f"{_REPLACEMENTS} samples in a row cannot be used; the last: {load.skipped[-1]} "
            f"Run `segkd data check`."
        )

    def _replacement(self, index: int, rng: np.random.Generator) -> int:
        if isinstance(self.dataset, Joined):
            return self.dataset.replacement(index, rng)
        return int(rng.integers(len(self.dataset)))

    def _read(self, index: int) -> Sample:
        found = None if self._kept is None else self._kept.read(index)
        if found is None:
            found = self.dataset.read_stored(index)
            self._check(index, found)
            if self._kept is not None:
                self._kept.keep(index, found)
        return replace(found, image=array_of(found.image)) if self._whole else found

    def _check(self, index: int, sample: Sample) -> None:
        """``check_sample``; of a packed label the first time, as that unpacks all of it."""
        packed = isinstance(sample.label, Packed)
        if not (packed and self._checked[index]):
            check_sample(self.dataset, index, sample)
            self._checked[index] = True


class EvalSource(SampleSource[int]):
    """Samples without augmentation. Keys are indices.

    Args:
        dataset: of the samples.
        config: the block ``data:``.
    """

    def __init__(self, dataset: Dataset, config: DataConfig) -> None:
        super().__init__(dataset)
        self.resize, self.skip = config.resize, config.on_error == "skip"

    def _item(self, key: int, load: Load) -> _Item | None:
        try:
            sample = self._read(key)
        except DataError as error:
            if not self.skip:
                raise
            load.skipped.append(str(error))
            return None
        height, width = self.resize or sample.image.shape[:2]
        image = resize_image(sample.image, (height, width))
        inside = np.ones(image.shape[:2], bool)
        file = image_name(self.dataset, key, sample)
        return _Item(image, sample.label, inside, None, key, sample.name, file)


def _stack(items: list[_Item], dataset: Dataset, always_labels: bool) -> Batch:
    """One Batch; unlabelled images get void labels, and are False in ``labelled``."""
    ignore_index = dataset.ignore_index
    _require_one_size(items, "image")
    labels, known = None, None
    labelled = [item.label for item in items if item.label is not None]
    if labelled or always_labels:
        _require_one_size([item for item in items if item.label is not None], "label")
        shape = labelled[0].shape if labelled else items[0].image.shape[:2]
        labels = torch.from_numpy(_stacked_labels([i.label for i in items], shape, ignore_index))
        if len(labelled) < len(items):
            known = torch.tensor([item.label is not None for item in items])
    extra = _lane_extra(items, dataset, always_labels) if dataset.task == "lanes" else {}
    for key in items[0].extra:
        extra[key] = torch.from_numpy(np.stack([item.extra[key] for item in items]))
    if items[0].cached.found:
        extra |= batched([item.cached for item in items])
    return Batch(
        images=torch.from_numpy(planes([item.image for item in items])),
        labels=labels,
        not_padding=torch.from_numpy(np.stack([item.not_padding for item in items])),
        index=torch.tensor([item.index for item in items], dtype=torch.int64),
        ignore_index=ignore_index,
        extra=extra,
        labelled=known,
    )


def planes(images: list[np.ndarray]) -> np.ndarray:
    """(H, W, 3) uint8 each -> (B, 3, H, W): OpenCV's split costs as little as stacking them does,
    a fifth of NumPy's transposition."""
    import cv2

    height, width, channels = images[0].shape
    planes = np.empty((len(images), channels, height, width), np.uint8)
    for image, target in zip(images, planes, strict=True):
        cv2.split(np.ascontiguousarray(image), list(target))
    return planes


def _stacked_labels(
    labels: list[np.ndarray | None], shape: tuple[int, ...], ignore_index: int
) -> np.ndarray:
    """(B, H, W) with void for None; uint8 if every id and the void one fit, else int64.

    Bytes are an eighth of what goes through shared memory, page-locked memory and the bus; the
    device makes int64 of them (``Batch.to``).
    """
    small = 0 <= ignore_index <= 255 and all(
        label is None or label.dtype == np.uint8 for label in labels
    )
    stacked = np.empty((len(labels), *shape), np.uint8 if small else np.int64)
    for target, label in zip(stacked, labels, strict=True):
        target[:] = ignore_index if label is None else label
    return stacked


def _lane_extra(items: list[_Item], dataset: Dataset, always: bool) -> dict[str, torch.Tensor]:
    """The additional tensors of a batch of a lane set.

    ``exist`` (B, L) float32 is 1 where a slot has a pixel in the label, so a lane outside the crop
    does not exist; NaN for unlabelled images. ``lanes`` (B, L, P, 2) float32, in training only, are
    the points x, y of these lanes in pixels of the image, padded with NaN; some may be outside.
    """
    num_lanes = len(dataset.classes) - 1
    exist = np.full((len(items), num_lanes), np.nan, np.float32)
    for row, item in zip(exist, items, strict=True):
        if item.label is not None:
            row[:] = present(item.label, num_lanes)
    extra = {"exist": torch.from_numpy(exist)} if always or not np.isnan(exist).all() else {}
    if all(item.lanes is None for item in items):
        return extra
    lanes = [item.lanes or (None,) * num_lanes for item in items]
    most = max((len(lane) for slots in lanes for lane in slots if lane is not None), default=0)
    points = np.full((len(items), num_lanes, most, 2), np.nan, np.float32)
    for i, slots in enumerate(lanes):
        for slot, lane in enumerate(slots):
            if lane is not None and exist[i, slot] == 1:
                points[i, slot, : len(lane)] = lane
    return extra | {"lanes": torch.from_numpy(points)}


def _require_one_size(items: list[_Item], part: str) -> None:
    for first, item in itertools.pairwise(items):
        one, other = getattr(first, part), getattr(item, part)
        if one.shape != other.shape:
            raise DataError(
                f"{part}s of one batch differ in size: {first.file} has {size_text(one)}, "
                f"{item.file} has {size_text(other)} (height x width). For training set "
                f"data.crop or data.resize, for evaluation eval.batch_size=1."
            )
