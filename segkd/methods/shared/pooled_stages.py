"""Stages of two networks as means over the cells of one grid, and a critic of each."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segkd.methods.base import Context, TapInfo
from segkd.methods.shared.feature_scale import FeatureScale
from segkd.modules.adapter import channel_adapter
from segkd.modules.position_critic import PositionCritic
from segkd.ops.grid import grid_means
from segkd.ops.nodes import raised
from segkd.ops.softmax_kl import mean_softmax_kl
from segkd.structures import Outputs, Term


@dataclass(frozen=True)
class PooledStage:
    """A tap of both networks on the grid.

    Attributes:
        tap: the student's, or ``logits`` for the probabilities of classes.
        student: (B, C, gh, gw), with a graph.
        teacher: (B, C, gh, gw).
        keep: (B, gh, gw) bool, False for cells without a valid part.
        critic: of its cells.
    """

    tap: str
    student: Tensor
    teacher: Tensor
    keep: Tensor
    critic: nn.Module


class PooledStages(nn.Module):
    """What belongs to one teacher: convolutions to its channels, scales and critics of its stages.

    Args:
        pairs: its tap of each of the student's.
        student, teacher: shapes of their taps.
        classes: K.
        grid: rows and columns of cells.
        scaled: features are divided by the scale of the teacher's.
    """

    def __init__(
        self,
        pairs: Mapping[str, str],
        student: Mapping[str, TapInfo],
        teacher: Mapping[str, TapInfo],
        *,
        classes: int,
        grid: tuple[int, int],
        scaled: bool,
    ) -> None:
        super().__init__()
        self.pairs, self.grid = dict(pairs), grid
        channels = [teacher[tap].channels for tap in pairs.values()]
        self.adapters = nn.ModuleList(
            channel_adapter(student[tap].channels, number)
            for tap, number in zip(pairs, channels, strict=True)
        )
        self.scales = nn.ModuleList(FeatureScale(scaled) for _ in pairs)
        self.critics = nn.ModuleList(
            PositionCritic(number, (max(4, number // 2), max(4, number // 4)))
            for number in (*channels, classes)
        )

    def forward(self, student: Outputs, teacher: Outputs, context: Context) -> list[PooledStage]:
        """All taps in order, the logits at last."""
        found = []
        parts = zip(self.pairs.items(), self.adapters, self.scales, self.critics[:-1], strict=True)
        for (tap, theirs), adapter, scale, critic in parts:
            pair = scale(student.tap(tap), teacher.tap(theirs).detach(), context)
            (own, keep), (other, also) = (self._cells(maps, context) for maps in pair)
            # The mean of a 1x1 convolution without bias is that of the mean, which is cheaper.
            own = raised(adapter(own))
            found.append(PooledStage(tap, own, other, keep & also, critic))
        logits = (raised(x) for x in (student.logits, teacher.logits.detach()))
        (own, keep), (other, also) = (self._cells(x.softmax(1), context) for x in logits)
        found.append(PooledStage("logits", own, other, keep & also, self.critics[-1]))
        return found

    def _cells(self, maps: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        return grid_means(maps, context.mask_at(*maps.shape[-2:]), self.grid)


def similarity(student: Tensor, teacher: Tensor, keep: Tensor) -> Term:
    """KL(teacher ‖ student) of softmaxes over all numbers (C, gh, gw) of an image in kept cells."""
    images = keep.flatten(1).any(1)
    every = keep.unsqueeze(1).expand_as(student).flatten(1)
    pair = student.flatten(1), teacher.flatten(1)
    return Term(mean_softmax_kl(*pair, images, keep=every), images.sum(dtype=torch.float64))


def cell_mean(values: Tensor, keep: Tensor) -> Term:
    """The mean of (B, gh, gw) over the cells that are kept."""
    count = keep.sum(dtype=torch.float64)
    total = values.masked_fill(~keep, 0).sum()
    return Term(total / count.clamp(min=1).to(total.dtype), count)
