"""Random generators of the images of a batch, made only if a method draws by image."""

from collections.abc import Sequence
from functools import cached_property
from typing import overload

import torch
from torch import Tensor

from segkd.runtime import generator


class ImageGenerators(Sequence[torch.Generator]):
    """CPU generators, one per image, made when the first of them is used.

    Most methods draw nothing by image; and of batches that a method has rewritten, the indices of
    their images are on the device, where reading them waits.

    Args:
        key: what all seeds have in common.
        index: (B,) int64, positions of the images in their dataset.
    """

    def __init__(self, key: tuple[object, ...], index: Tensor) -> None:
        self._key, self._index = key, index

    @cached_property
    def _made(self) -> list[torch.Generator]:
        return [generator(*self._key, index) for index in self._index.tolist()]

    def __len__(self) -> int:
        return len(self._index)

    @overload
    def __getitem__(self, place: int) -> torch.Generator: ...

    @overload
    def __getitem__(self, place: slice) -> list[torch.Generator]: ...

    def __getitem__(self, place: int | slice) -> torch.Generator | list[torch.Generator]:
        return self._made[place]
