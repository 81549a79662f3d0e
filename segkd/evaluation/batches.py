"""The batches of an evaluation: every image of this process's share, with its label."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from segkd.data.base import Dataset
from segkd.data.transfer import Ahead, lane_for
from segkd.errors import DataError
from segkd.structures import Batch

if TYPE_CHECKING:
    from segkd.config.schema import EvalConfig
    from segkd.data.loader import EvalLoader
    from segkd.runtime import Runtime

Progress = Callable[[int, int], None]  # (done, total)


@dataclass(frozen=True)
class Placed:
    """A batch to be evaluated.

    Attributes:
        images: (B, 3, H, W) uint8 RGB on the device.
        labels: (B, H', W') class ids of any integer type, on the device.
        index: (B,) int64 on the CPU, positions in the dataset.
    """

    images: Tensor
    labels: Tensor
    index: Tensor


def open_loader(
    dataset: Dataset, config: "EvalConfig", runtime: "Runtime", workers: int
) -> "EvalLoader":
    """The loader of this process's share of a dataset.

    Raises:
        DataError: the dataset has no image.
    """
    from segkd.data.loader import eval_loader

    return eval_loader(
        dataset,
        batch_size=config.batch_size,
        workers=workers,
        rank=runtime.rank,
        world=runtime.world,
        limit=config.limit,
        pin_memory=runtime.device.type == "cuda",
    )


def labelled_batches(
    loader: "EvalLoader", dataset: Dataset, progress: Progress | None
) -> Iterator[tuple[Batch, Tensor]]:
    """Batches with their labels (B, H, W), on the CPU.

    Args:
        loader: see ``open_loader``.
        dataset: of the loader, for messages.
        progress: called after each batch with (images done, images of this process).

    Raises:
        DataError: an image has no label, or cannot be read.
    """
    done = 0
    for batch, names in loader:
        labels, known = batch.labels, batch.labelled
        if labels is None or known is not None:  # of none of these images, or not of all
            name = names[0 if known is None else int(known.int().argmin())]
            what = "annotation" if dataset.task == "lanes" else "label"
            raise DataError(
                f"image '{name}' of '{dataset.name}' has no {what}, so it cannot be scored: "
                "use a labelled split (data.val_split=…)"
            )
        yield batch, labels
        done += len(names)
        if progress is not None:
            progress(done, loader.images)


def placed_batches(
    loader: "EvalLoader", dataset: Dataset, progress: Progress | None, device: torch.device
) -> Ahead[tuple[Batch, Tensor], Placed]:
    """``labelled_batches``, with labels (B, H, W), on a device; on CUDA one is copied ahead."""

    def move(pair: tuple[Batch, Tensor]) -> Placed:
        batch, labels = pair
        images, labels = (part.to(device, non_blocking=True) for part in (batch.images, labels))
        return Placed(images, labels, batch.index)

    batches = labelled_batches(loader, dataset, progress)
    return Ahead(batches, move, lambda placed: (placed.images, placed.labels), lane_for(device))
