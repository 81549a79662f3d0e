"""Memory banks of a teacher's features in earlier images: single pixels and class regions."""

from collections.abc import Collection, Iterator
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from segkd.errors import ConfigError
from segkd.methods.base import Context, MethodConfig
from segkd.modules.class_queue import ClassQueue, class_means, pick_per_class
from segkd.ops.nodes import raised
from segkd.ops.similarity_kl import unit
from segkd.ops.squared_distance import squared_norm

BANKS = ("pixel", "region")


class BankKeys(MethodConfig):
    """Keys of methods with a ``TeacherBank``."""

    pixel_queue: PositiveInt = Field(20000, description="pixels that the bank holds per class")
    region_queue: PositiveInt = Field(2000, description="regions that the bank holds per class")
    pixels_per_class: PositiveInt = Field(16, description="pixels stored per class and image")
    pixel_keys: PositiveInt = Field(4096, description="pixels taken from the bank in a step")
    region_keys: PositiveInt = Field(1024, description="regions taken from the bank in a step")
    bank_dtype: Literal["bfloat16", "float32"] = Field(
        "bfloat16", description="of stored vectors; bfloat16 takes half of the memory"
    )


class TeacherBank(nn.Module):
    """Ring buffers of the teacher's vectors, per class, scaled to length 1.

    All state is in buffers. They are equal on all processes without a broadcast: each process
    picks from its own images by their generators, and all store the gathered vectors.

    Args:
        keys: sizes.
        kinds: some of ``BANKS``.
        classes: K.
        channels: C_t.

    Raises:
        ConfigError: a queue is smaller than what one image may add.
    """

    pixel: ClassQueue | None
    region: ClassQueue | None

    def __init__(self, keys: BankKeys, kinds: Collection[str], classes: int, channels: int) -> None:
        super().__init__()
        if "pixel" in kinds and keys.pixels_per_class > keys.pixel_queue:
            raise ConfigError(
                f"pixel_queue={keys.pixel_queue} is smaller than one update: an image adds up to "
                f"pixels_per_class={keys.pixels_per_class} of a class. Set pixel_queue to at least "
                "that number times the global batch"
            )
        self.keys, self.classes = keys, classes
        dtype = getattr(torch, keys.bank_dtype)
        for kind in BANKS:
            size = getattr(keys, f"{kind}_queue")
            queue = ClassQueue(classes, size, channels, dtype) if kind in kinds else None
            self.add_module(kind, queue)

    def sample(self, context: Context) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Random keys, equally many of each class.

        Yields:
            For each kind its name, keys (M, C_t), and (M,) bool, False for classes whose ring is
            still empty.
        """
        for kind in BANKS:
            queue, number = getattr(self, kind), getattr(self.keys, f"{kind}_keys")
            if queue is not None:
                yield kind, *queue.sample(-(-number // self.classes), context.generator)

    @torch.no_grad()
    def fill(self, features: Tensor, context: Context) -> None:
        """Stores vectors of labelled pixels, gathered over all processes.

        Args:
            features: the teacher's, (B, C_t, h, w).
            context: of the step; its batch has labels.

        Raises:
            ConfigError: the global batch may add more vectors than a queue holds.
        """
        labels = context.labels_at(*features.shape[-2:])
        labels = labels.masked_fill(labels == context.batch.ignore_index, -1).flatten(1)
        maps = features.flatten(2)
        if self.pixel is not None:
            places, present = pick_per_class(
                labels, self.classes, self.keys.pixels_per_class, context.image_generators
            )
            index = places.flatten(1).unsqueeze(1).expand(-1, maps.shape[1], -1)
            vectors = unit(raised(maps.gather(2, index).mT.contiguous()))
            self._push("pixel", vectors.view(*places.shape, -1), present, context)
        if self.region is not None:
            maps = raised(maps)
            means, present = class_means(maps.mT, labels, self.classes, _inverse_norm(maps))
            self._push("region", unit(means).unsqueeze(2), present.unsqueeze(2), context)

    def _push(self, kind: str, vectors: Tensor, present: Tensor, context: Context) -> None:
        try:
            getattr(self, kind).push(*context.gather_rows(vectors, present))
        except ValueError as error:
            raise ConfigError(f"{kind}_queue: {error}") from None


def _inverse_norm(maps: Tensor) -> Tensor:
    """1 / length of each position, or 0 if the length is 0: (B, C, N) -> (B, N)."""
    squares = squared_norm(maps.unsqueeze(3)).squeeze(2)
    return squares.masked_fill(squares == 0, torch.inf).rsqrt()
