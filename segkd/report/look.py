"""Evaluates a network image by image; the counts are cached between reports."""

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from segkd.config.schema import EvaluationConfig
from segkd.data.base import Dataset
from segkd.data.loader import eval_loader
from segkd.data.picked import Picked
from segkd.data.reading import DAMAGED_ARRAYS
from segkd.errors import DataError
from segkd.files import write_atomic
from segkd.inference.scores import label_map
from segkd.inference.views import views
from segkd.metrics.boundary import boundary_counts
from segkd.metrics.confusion import confusion
from segkd.ops.mode import eval_mode
from segkd.runtime import Runtime

_VERSION = 2  # of cached files; others are not read


@dataclass(frozen=True)
class Look:
    """Results of a network on n images of a dataset.

    Attributes:
        indices: (n,) int64, positions in the dataset.
        names: n names of images.
        counts: (n, 3, K) int64: correct, labelled and predicted pixels by class.
        matrix: (K, K) int64 confusion matrix over all images, rows are labels.
        boundary: (2, K) int64 over all images, see ``metrics.boundary``.
    """

    indices: np.ndarray
    names: tuple[str, ...]
    counts: np.ndarray
    matrix: torch.Tensor
    boundary: torch.Tensor

    @property
    def image_miou(self) -> np.ndarray:
        """(n,) float64: mean IoU over the classes of each image; NaN without labelled pixels."""
        right, labelled, predicted = self.counts.transpose(1, 0, 2).astype(float)
        either = labelled + predicted - right
        present = either > 0
        iou = np.divide(right, either, out=np.zeros_like(right), where=present)
        number = present.sum(1)
        total = iou.sum(1)
        return np.divide(total, number, out=np.full(len(total), np.nan), where=number > 0)


def chosen_images(count: int, limit: int | None) -> list[int]:
    """Positions of the images to evaluate: all that a run scores, or ``limit`` evenly spread ones.

    Args:
        count: number of images that a run scores, the first of the set.
        limit: None: all of them.
    """
    if limit is None or limit >= count:
        return list(range(count))
    return [int(index) for index in np.linspace(0, count - 1, limit).round()]


@torch.no_grad()
def look(
    network: nn.Module,
    dataset: Dataset,
    config: EvaluationConfig,
    runtime: Runtime,
    indices: Sequence[int],
    progress: Callable[[int, int], None] | None = None,
) -> Look:
    """Evaluates a network image by image, including boundaries.

    Args:
        network: on ``runtime.device``.
        dataset: with labels, at whose resolution pixels are counted.
        config: scales, flip, sliding window, and batch size.
        runtime: device and precision.
        indices: positions of the images.
        progress: called as ``progress(done, total)``.

    Raises:
        SegKDError: an image cannot be read, or none of them, or does not fit the network.
    """
    loader = eval_loader(
        Picked(dataset, indices), batch_size=config.eval.batch_size, workers=config.data.workers
    )
    classes, void = len(dataset.classes), dataset.ignore_index
    found: list[int] = []
    names: list[str] = []
    counts: list[np.ndarray] = []
    matrix = torch.zeros(classes, classes, dtype=torch.int64)
    edges = torch.zeros(2, classes, dtype=torch.int64)
    with eval_mode(network), runtime.autocast():
        for batch, batch_names in loader:
            places = batch.index.tolist()
            batch = batch.to(runtime.device)
            assert batch.labels is not None  # evaluation images have labels
            height, width = batch.labels.shape[1:]
            maps = label_map(views(network, batch.images, config.eval), (height, width))
            for predicted, label in zip(maps, batch.labels, strict=True):
                own = confusion(predicted, label, classes, void).cpu()
                matrix += own
                counts.append(torch.stack([own.diagonal(), own.sum(1), own.sum(0)]).numpy())
                edges += boundary_counts(predicted, label, classes, void).cpu()
            found += [indices[place] for place in places]
            names += batch_names
            if progress is not None:
                progress(len(found), len(indices))
    if not counts:
        raise DataError(f"none of {len(indices)} images can be read")
    return Look(np.array(found), tuple(names), np.stack(counts), matrix, edges)


def cached_look(folder: Path, key: str, make: Callable[[], Look]) -> Look:
    """The cached result of ``key``, else that of ``make``, which is then cached.

    Args:
        folder: of cached files.
        key: see ``look_key``.
        make: evaluates the network.

    Raises:
        OSError: the file cannot be written.
    """
    path = folder / f"{key}.npz"
    if path.is_file():
        try:
            return _load(path)
        except DAMAGED_ARRAYS:
            path.unlink(missing_ok=True)  # damaged, or of another version
    found = make()
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        indices=found.indices,
        names=np.array(found.names),
        counts=found.counts,
        matrix=found.matrix.numpy(),
        boundary=found.boundary.numpy(),
    )
    write_atomic(path, lambda file: file.write(buffer.getvalue()))
    return found


def file_states(dataset: Dataset, indices: Sequence[int]) -> str:
    """Hash of the sizes and times of images and masks, which change when they are corrected.

    Args:
        dataset: its files are not read; sets without files have none.
        indices: positions of the images.
    """
    states: list[tuple[int, int]] = []
    for index in indices:
        files = dataset.files(index)
        for path in files if files is not None else ():
            if path is not None and path.is_file():
                found = path.stat()
                states.append((found.st_size, found.st_mtime_ns))
    return hashlib.blake2b(repr(states).encode(), digest_size=12).hexdigest()


def look_key(
    fingerprint: str, config: EvaluationConfig, indices: Sequence[int], files: str = ""
) -> str:
    """Hash of everything that affects a network's results.

    Args:
        fingerprint: of the network.
        config: of the evaluation.
        indices: positions of the images.
        files: their ``file_states``.
    """
    plain = config.model_dump(mode="json")
    plain["data"].pop("workers", None)
    parts = [_VERSION, fingerprint, plain["data"], plain["eval"], plain["runtime"]["precision"]]
    text = json.dumps([*parts, list(indices), files], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _load(path: Path) -> Look:
    with np.load(path, allow_pickle=False) as kept:
        return Look(
            kept["indices"],
            tuple(map(str, kept["names"])),
            kept["counts"],
            torch.from_numpy(kept["matrix"]),
            torch.from_numpy(kept["boundary"]),
        )
