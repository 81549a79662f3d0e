"""Contrast of channel groups at the positions of a patch, streamed over patches.

In a patch of n positions each position has M vectors, its channels in M groups. A vector of the
student is to be closer to the teacher's of the same position and group than to any of other
groups. The direct form keeps several maps of (n·M)² distances for each patch; here gradients are
computed block by block together with the value, and only they are kept for backward.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from segkd.ops.blocks import BlockSize

# Distances per block: on a CPU about what fits the cache, elsewhere enough to keep a device busy.
_BLOCK = BlockSize(2**21, 2**25)
# e^−60 is lost beside the largest share, 1. On a CPU, torch's exp (MKL) needs a hundred times as
# long for an element whose result is 0 or denormal, which most distances over T would give.
_LEAST = -60.0


def omni_contrast(
    student: Tensor,
    teacher: Tensor,
    keep: Tensor,
    *,
    groups: int,
    temperature: float,
) -> Tensor:
    """Sum of −log softmax(−‖a − b‖₁ / T) of the own vector among it and those of other groups.

    The sum is over the vectors a of kept positions; b are vectors of kept positions of the same
    patch. Other positions of the own group are neither like a nor unlike it, and left out.

    Args:
        student: (P, n, C), n positions of each of P patches, float32 or wider.
        teacher: (P, n, C), without gradient; groups are consecutive channels of both.
        keep: (P, n) bool, True where positions are valid.
        groups: M, which divides C.
        temperature: T.

    Returns:
        A scalar; there is no double backward.
    """
    return _OmniContrast.apply(student, teacher, keep, groups, temperature)


class _OmniContrast(torch.autograd.Function):
    """Computes the gradient together with the value and keeps only that."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, keep: Tensor, groups: int, temperature: float
    ) -> Tensor:
        patches, positions, channels = student.shape
        vectors = positions * groups
        shape = patches, vectors, channels // groups
        student, teacher = student.reshape(shape), teacher.reshape(shape)
        kept = keep.repeat_interleave(groups, dim=1, output_size=vectors)
        compared = _compared(positions, groups, student.device)
        budget = _BLOCK.on(student.device)
        size = max(1, budget // vectors**2)
        value, gradient = student.new_zeros(()), torch.zeros_like(student)
        with torch.autocast(student.device.type, enabled=False):
            for start in range(0, patches, size):
                block = slice(start, start + size)
                leaf = student[block].clone().requires_grad_()
                with torch.enable_grad():
                    distances = torch.cdist(leaf, teacher[block], p=1)
                total, slope = _contrast(distances.detach(), kept[block], compared, temperature)
                gradient[block] = torch.autograd.grad(distances, leaf, slope)[0]
                value = value + total
        ctx.save_for_backward(gradient.view(patches, positions, channels))
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None, None, None, None


def _compared(positions: int, groups: int, device: torch.device) -> Tensor:
    """(n·M, n·M) bool: the vector itself, and those of other groups."""
    group = torch.arange(groups, device=device).repeat(positions)
    own = torch.eye(positions * groups, dtype=torch.bool, device=device)
    return own | (group.unsqueeze(0) != group.unsqueeze(1))


def _contrast(
    distances: Tensor, kept: Tensor, compared: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """The sum over the ``kept`` (p, n·M) vectors of a block, and its gradient.

    Args:
        distances: (p, n·M, n·M).
        kept: (p, n·M) bool.
        compared: (n·M, n·M) bool.
        temperature: T.
    """
    logits = distances / -temperature
    own = logits.diagonal(dim1=1, dim2=2).clone()
    out = ~(compared & kept.unsqueeze(1))
    # Low but finite: a patch without a kept position has no NaN.
    logits.masked_fill_(out, torch.finfo(logits.dtype).min / 2)
    highest = logits.amax(2, keepdim=True)
    shares = logits.sub_(highest).clamp_(min=_LEAST).exp_().masked_fill_(out, 0)
    total = shares.sum(2, keepdim=True)
    among = (highest + total.log()).squeeze(2)
    shares.div_(total.mul_(temperature)).neg_()
    shares.diagonal(dim1=1, dim2=2).add_(1 / temperature)
    shares.masked_fill_(~kept.unsqueeze(2), 0)
    return (among - own).masked_fill_(~kept, 0).sum(), shares
