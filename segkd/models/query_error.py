"""The error of a black box that failed, and the names of the images it failed on."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from segkd.data.base import Dataset
from segkd.data.reading import listed
from segkd.errors import SegKDError

_SHOWN = 3  # names


class QueryError(SegKDError):
    """A black box failed, or returned no predictions.

    Args:
        message: for the user.
        images: positions in the batch of the images that it is about; empty: all of them.
    """

    def __init__(self, message: str, images: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.images = images

    def at(self, place: str) -> "QueryError":
        """See ``SegKDError.at``."""
        return QueryError(f"{place}: {self}", self.images)


@contextmanager
def naming_images(dataset: Dataset, index: Tensor) -> Iterator[None]:
    """Adds the images' names to a ``QueryError`` of the body.

    Args:
        dataset: of the images.
        index: (B,) position in the dataset of each image of the batch.

    Raises:
        QueryError: of the body, with the names.
    """
    try:
        yield
    except QueryError as error:
        every = index.tolist()
        chosen = [every[position] for position in error.images if position < len(every)] or every
        names = [_name(dataset, one) for one in chosen]
        raise QueryError(f"{error}. Images: {listed(names, _SHOWN)}", error.images) from error


def _name(dataset: Dataset, index: int) -> str:
    files = dataset.files(index)
    return f"{dataset.name} {dataset.split} {index}" if files is None else str(files[0])
