"""The batches of an evaluation: every image of this process's share, with its label."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from segkd.data.base import Dataset
from segkd.errors import DataError
from segkd.structures import Batch

if TYPE_CHECKING:
    from segkd.config.schema import EvalConfig
    from segkd.data.loader import EvalLoader
    from segkd.runtime import Runtime

Progress = Callable[[int, int], None]  # (done, total)


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
        if batch.labels is None:
            what = "annotation" if dataset.task == "lanes" else "label"
            raise DataError(
                f"image '{names[0]}' of '{dataset.name}' has no {what}, so it cannot be scored: "
                "use a labelled split (data.val_split=…)"
            )
        yield batch, batch.labels
        done += len(names)
        if progress is not None:
            progress(done, loader.images)
