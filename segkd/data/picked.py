"""Some images of a dataset."""

from collections.abc import Sequence

from segkd.data.base import Dataset, Sample


class Picked(Dataset):
    """Some images of a dataset.

    Args:
        dataset: the dataset.
        indices: positions of the images in it.
    """

    def __init__(self, dataset: Dataset, indices: Sequence[int]) -> None:
        super().__init__(dataset.config, dataset.split)
        self.classes, self.palette = dataset.classes, dataset.palette
        self.ignore_index = dataset.ignore_index
        self.dataset, self.indices = dataset, [int(index) for index in indices]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Sample:
        return self.dataset.read(self.indices[index])
