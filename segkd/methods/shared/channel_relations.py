"""Relations of channels: each is a vector over the cells of its image, of length 1.

CIRKD's second version relates the channels of all images of a batch to one another, to a bank of
the teacher's channels in earlier images, and to the same channel of the teacher.
"""

from collections.abc import Callable, Collection
from functools import partial

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from segkd.errors import ConfigError
from segkd.methods.base import Context, MethodConfig
from segkd.modules.class_queue import ClassQueue
from segkd.ops.grid import grid_means
from segkd.ops.queued import queued
from segkd.ops.similarity_kl import mean_similarity_kl, unit_channels
from segkd.structures import Term

TERMS = ("channel", "channel_memory", "channel_distance")


class ChannelKeys(MethodConfig):
    """Keys of methods with ``ChannelRelations``."""

    channel_grid: tuple[PositiveInt, PositiveInt] | None = Field(
        None,
        description="rows and columns of cells, of which a channel is a vector; default: 16, 32, "
        "but with `version: 1` and `channel` alone the nodes as of `pool`",
    )
    channel_queue: PositiveInt = Field(10000, description="channels that the bank holds")
    channels_per_step: PositiveInt = Field(256, description="channels stored in a step")
    channel_keys: PositiveInt = Field(2048, description="channels taken from the bank in a step")


class ChannelRelations(nn.Module):
    """The terms of ``TERMS`` that are wanted, and the bank of channels.

    All state is in buffers. It is equal on all processes without a broadcast: all choose from the
    gathered channels by the same generator.

    Args:
        keys: sizes.
        grid: rows and columns of cells.
        wanted: some of ``TERMS``.
        projector: nodes (…, C_s) of the student to (…, C_t).
        dtype: of stored vectors.
        temperature: T of the softmax over channels.

    Raises:
        ConfigError: the bank is smaller than one update.
    """

    queue: ClassQueue | None

    def __init__(
        self,
        keys: ChannelKeys,
        grid: tuple[int, int],
        wanted: Collection[str],
        projector: nn.Module,
        dtype: torch.dtype,
        temperature: float,
    ) -> None:
        super().__init__()
        if keys.channels_per_step > keys.channel_queue:
            raise ConfigError(
                f"channel_queue={keys.channel_queue} is smaller than one update, which adds "
                f"channels_per_step={keys.channels_per_step}. Set channel_queue to at least that"
            )
        self.keys, self.grid, self.projector = keys, grid, projector
        self.wanted = [term for term in TERMS if term in wanted]
        self.relation = partial(mean_similarity_kl, temperature=temperature)
        length = grid[0] * grid[1]
        bank = "channel_memory" in self.wanted
        self.queue = ClassQueue(1, keys.channel_queue, length, dtype) if bank else None

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        context: Context,
        related: Callable[..., tuple[Tensor, ...]],
    ) -> dict[str, Term]:
        """The terms by name.

        Args:
            student: (B, C_s, h, w), with a graph.
            teacher: (B, C_t, h', w').
            context: of the step.
            related: of tensors (B, …), those of the images to which ``channel`` relates them.
        """
        cells, kept = self._cells(student, context)
        targets, also = self._cells(teacher.detach(), context)
        own = self.projector(cells.mT).mT
        rows = unit_channels(own, targets, kept & also)
        student, teacher, valid = rows
        terms: dict[str, Term] = {}
        if "channel" in self.wanted:
            terms["channel"] = Term(*self.relation(*rows, *related(*rows)))
        if self.queue is not None:
            entries, known = self.queue.sample(self.keys.channel_keys, context.generator)
            keys = entries[None], entries[None], known[None]
            terms["channel_memory"] = Term(*self.relation(*rows, *keys))
        if "channel_distance" in self.wanted:
            distances = (student - teacher).square().sum(2).masked_fill(~valid, 0)
            count = valid.sum(dtype=torch.float64)
            value = distances.sum() / count.clamp(min=1).to(distances.dtype)
            terms["channel_distance"] = Term(value, count)
        return terms

    @torch.no_grad()
    def fill(self, teacher: Tensor, context: Context) -> None:
        """Stores random channels of the global batch.

        Args:
            teacher: features (B, C_t, h, w).
            context: of the step.
        """
        if self.queue is None:
            return
        cells, kept = self._cells(teacher, context)
        vectors, _, valid = unit_channels(cells, cells, kept)
        vectors, valid = (part.flatten(0, 1) for part in context.gather_rows(vectors, valid))
        order = torch.randperm(len(vectors), generator=context.generator)
        chosen = queued(order[: self.keys.channels_per_step], vectors.device)
        self.queue.push(vectors[chosen][None, None], valid[chosen][None, None])

    def _cells(self, maps: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Means of the cells, (B, C, N), and which of them are valid, (B, N)."""
        cells, keep = grid_means(maps, context.mask_at(*maps.shape[-2:]), self.grid)
        return cells.flatten(2), keep.flatten(1)
