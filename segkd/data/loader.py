"""Loaders of batches: the images of each step, their seeds, and worker processes.

Batches do not depend on the number of workers or on earlier batches, so a run resumes at step s
with ``start=s``.
"""

import logging
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Generic

import numpy as np
import torch
from torch.utils.data import DataLoader

from segkd.data.base import DataConfig, Dataset
from segkd.data.cached_outputs import CacheFolder, Views
from segkd.data.prediction_crops import Store
from segkd.data.reading import repair_of_missing
from segkd.data.sources import EvalSource, Key, Load, SampleSource, TrainSource
from segkd.data.unlabeled import Joined
from segkd.data.workers import POLL, Workers, shared
from segkd.errors import DataError
from segkd.structures import Batch

_log = logging.getLogger(__name__)


class _Loader(Generic[Key]):
    """Iterates over batches of one source.

    Attributes:
        skipped: how often each unusable sample was skipped (``data.on_error: skip``), by message.
            Each is also logged once.
    """

    def __init__(
        self, source: SampleSource[Key], keys: Iterable[list[Key]], workers: int, pin: bool
    ) -> None:
        self.skipped: dict[str, int] = {}
        self.workers = Workers(workers)
        source.beat = self.workers.beat
        self._loader: DataLoader[Load] = DataLoader(
            source,
            batch_sampler=keys,
            num_workers=workers,
            collate_fn=_as_loaded,
            pin_memory=pin,
            worker_init_fn=self.workers.begin,
            timeout=POLL if workers else 0,
            generator=torch.Generator().manual_seed(0),  # leaves the global one unchanged
        )

    def __len__(self) -> int:
        """Number of batches if none is skipped."""
        return len(self._loader)

    def _batches(self) -> Iterator[tuple[Batch, list[str]]]:
        loads = self.workers.loads(self._loader) if self.workers.count else self._loader
        for load in loads:
            for message in load.skipped:
                if message not in self.skipped:
                    _log.warning("skipped: %s", message)
                self.skipped[message] = self.skipped.get(message, 0) + 1
            if load.error is not None:
                raise load.error
            if load.batch is not None:
                yield load.batch, load.names


class TrainLoader(_Loader[tuple[int, int]]):
    """Yields a Batch per micro-step."""

    def __iter__(self) -> Generator[Batch, None, None]:
        return (batch for batch, _ in self._batches())


class EvalLoader(_Loader[int]):
    """Yields (Batch, names of its images).

    Attributes:
        images: number of images of this process if none is skipped.
    """

    images: int

    def __iter__(self) -> Iterator[tuple[Batch, list[str]]]:
        return self._batches()


class _Order:
    """An endless sequence of permutations, one per epoch, so that no image is skipped."""

    def __init__(self, length: int, seed: int, *kind: int) -> None:
        self.length, self.seed, self.kind = length, seed, kind
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __getitem__(self, position: int) -> tuple[int, int]:
        """Epoch and index."""
        epoch, place = divmod(position, self.length)
        if epoch != self._epoch:
            order = np.random.default_rng([self.seed, epoch, *self.kind]).permutation(self.length)
            self._epoch, self._order = epoch, order
        return epoch, int(self._order[place])


class _TrainKeys:
    """The (epoch, index) pairs of each micro-step of one rank.

    The images of all micro-steps and ranks of a step are a contiguous slice of an endless sequence.
    With unlabelled images there are two sequences. Both kinds are interleaved as evenly as possible
    within a step, so that each rank and micro-step gets its share of both.
    """

    def __init__(
        self,
        dataset: Dataset,
        seed: int,
        batch_size: int,
        rank: int,
        world: int,
        accumulate: int,
    ) -> None:
        self.batch_size, self.rank, self.world = batch_size, rank, world
        self.images = batch_size * world * accumulate
        self.span = range(0)
        self.first, others, self.unlabelled = len(dataset), 0, 0
        if isinstance(dataset, Joined):
            self.first, others = len(dataset.main), len(dataset.other)
            self.unlabelled = dataset.per_step(self.images)
        self.main = _Order(self.first, seed)
        self.other = _Order(others, seed, 0, 1)  # differs from the seeds of augmentation

    def __len__(self) -> int:
        return len(self.span)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for micro_step in self.span:
            first = (micro_step * self.world + self.rank) * self.batch_size
            yield [self._key(first + offset) for offset in range(self.batch_size)]

    def _key(self, position: int) -> tuple[int, int]:
        step, place = divmod(position, self.images)
        before = place * self.unlabelled // self.images
        if (place + 1) * self.unlabelled // self.images == before:
            return self.main[step * (self.images - self.unlabelled) + place - before]
        epoch, index = self.other[step * self.unlabelled + before]
        return epoch, self.first + index


def train_loader(
    dataset: Dataset,
    *,
    config: DataConfig,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
    pin_memory: bool = False,
    stores: Mapping[str, Store] | None = None,
    caches: Mapping[str, CacheFolder] | None = None,
    views: Views | None = None,
) -> TrainLoader:
    """Augmented batches of the steps ``start`` to ``stop - 1``, ``accumulate`` for each step.

    Args:
        dataset: any Dataset; a ``Joined`` one adds unlabelled images by its share.
        config: its block ``data:``, with crop, scale, workers etc.
        batch_size: per process and micro-step.
        seed: determines order and augmentation, together with epoch and index.
        start: first step; to resume, the number of steps done.
        stop: step after the last.
        rank: of this process; it gets the rank-th contiguous slice of each global batch.
        world: number of processes.
        accumulate: micro-steps per step.
        pin_memory: page-lock the tensors for the transfer to a GPU.
        stores: by teacher, stored predictions, which go along in ``Batch.extra``.
        caches: by teacher, stored outputs, which go along as well.
        views: the views that images are cut into; None: another one in each epoch.

    Raises:
        DataError: the set is empty or files are missing; while iterating, also for broken
            samples (see ``data.on_error``) and for images of different sizes in a batch.
    """
    _require_images(dataset)
    if config.on_error == "raise":
        _require_files(dataset)
    keys = _TrainKeys(dataset, seed, batch_size, rank, world, accumulate)
    keys.span = range(start * accumulate, stop * accumulate)
    source = TrainSource(dataset, config, seed, stores, caches, views)
    return TrainLoader(source, keys, config.workers, pin_memory)


def eval_loader(
    dataset: Dataset,
    *,
    batch_size: int = 1,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    limit: int | None = None,
    config: DataConfig | None = None,
    pin_memory: bool = False,
) -> EvalLoader:
    """Each image once over all processes, in order, not augmented, with its name.

    Images are resized to ``config.resize``; labels keep their stored size, at which they are
    scored. Rank r gets the r-th contiguous part.

    Args:
        dataset: any Dataset.
        batch_size: more than 1 requires images, and labels, of one size.
        workers: loader processes; 0: this process.
        rank: of this process.
        world: number of processes.
        limit: only the first images of the set.
        config: default: the dataset's own.
        pin_memory: page-lock the tensors for the transfer to a GPU.

    Raises:
        DataError: the set is empty; while iterating, as for ``train_loader``.
    """
    _require_images(dataset)
    count = len(dataset) if limit is None else min(limit, len(dataset))
    own = range(count * rank // world, count * (rank + 1) // world)
    keys = [list(own[first : first + batch_size]) for first in range(0, len(own), batch_size)]
    source = EvalSource(dataset, config or dataset.config)
    loader = EvalLoader(source, keys, workers, pin_memory)
    loader.images = len(own)
    return loader


def _require_images(dataset: Dataset) -> None:
    if len(dataset) == 0:
        raise DataError(
            f"dataset '{getattr(dataset, 'name', type(dataset).__name__)}' has no images in split "
            f"'{getattr(dataset, 'split', '')}'. Run `segkd data check`."
        )


def _require_files(dataset: Dataset) -> None:
    """Raises DataError for missing files before the run begins."""
    pairs = [dataset.files(index) for index in range(len(dataset))]
    paths = [path for pair in pairs if pair is not None for path in pair if path is not None]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        images = {pair[0] for pair in pairs if pair is not None}
        repair = repair_of_missing(Path(missing[0]), see="", known=images)
        raise DataError(
            f"{len(missing)} of {len(paths)} files are missing, the first: {missing[0]}. "
            f"{repair}{' ' if repair else ''}`segkd data check` lists them; "
            f"data.on_error=skip trains without them. If images have no label on purpose, "
            f"data.labels=optional takes them as unlabelled, and data.labels=none reads no label."
        )


def _as_loaded(loads: list[Load]) -> Load:
    """The only item of what a source returns, with its tensors in shared memory."""
    (load,) = loads
    if load.batch is None:
        return load
    error = shared(load.batch.tensors())
    return load if error is None else Load(error=error)
