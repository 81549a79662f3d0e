"""Pearson's correlation of two maps: over channels at a position, or over positions of a channel.

Both sides may be probabilities or features.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def pixel_correlation(student: Tensor, teacher: Tensor, *, eps: float) -> Tensor:
    """The correlation over the K classes, at each position.

    Args:
        student, teacher: (B, K, h, w); the teacher gets no gradient.
        eps: added to both variances, so that a uniform distribution has correlation 0.

    Returns:
        (B, h, w).
    """
    means = [x.detach().mean(1, keepdim=True) for x in (student, teacher)]
    sums = _CentralSums.apply(student, teacher, *means, None, (1,))
    return _correlation(sums / student.shape[1], eps)


def class_correlation(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    *,
    eps: float,
    all_sum: Callable[[Tensor], Tensor] = lambda x: x,
) -> tuple[Tensor, Tensor]:
    """The correlation over all valid positions of all images, for each class.

    Args:
        student, teacher: (B, K, h, w); the teacher gets no gradient.
        mask: (B, h, w) bool, True where positions are valid.
        eps: added to both variances, so that a constant map has correlation 0.
        all_sum: sums a tensor over processes, and so does its backward; called twice on each.

    Returns:
        (K,) correlations and the number of valid positions, the same on every process.
    """
    hidden = ~mask.unsqueeze(1)
    totals = [x.detach().masked_fill(hidden, 0).sum((0, 2, 3)) for x in (student, teacher)]
    count = mask.sum().to(totals[0].dtype).expand_as(totals[0])
    *totals, count = all_sum(torch.stack([*totals, count]))
    divisor = count.clamp(min=1)
    means = [(total / divisor)[:, None, None] for total in totals]
    sums = _CentralSums.apply(student, teacher, *means, hidden, (0, 2, 3))
    return _correlation(all_sum(sums) / divisor, eps), count[0]


class _CentralSums(torch.autograd.Function):
    """(3, …): Σ s·t, Σ s² and Σ t² over ``axes``, of s and t minus their means, 0 where hidden.

    Deviations from a mean sum to 0, so the means need no gradient of their own. Backward
    recomputes the deviations from the two inputs, which are in memory anyway.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        mean_s: Tensor,
        mean_t: Tensor,
        hidden: Tensor | None,
        axes: tuple[int, ...],
    ) -> Tensor:
        s, t = _deviations(student, teacher, mean_s, mean_t, hidden)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(student, teacher, mean_s, mean_t, hidden)
            ctx.axes = axes
        return torch.stack([(s * t).sum(axes), s.square_().sum(axes), t.square_().sum(axes)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        s, t = _deviations(*ctx.saved_tensors)
        for axis in ctx.axes:
            upstream = upstream.unsqueeze(axis + 1)
        gradient = t.mul_(upstream[0]).addcmul_(s, upstream[1], value=2)
        return gradient, None, None, None, None, None


def _deviations(
    student: Tensor, teacher: Tensor, mean_s: Tensor, mean_t: Tensor, hidden: Tensor | None
) -> tuple[Tensor, Tensor]:
    s, t = student - mean_s, teacher - mean_t
    return (s, t) if hidden is None else (s.masked_fill_(hidden, 0), t.masked_fill_(hidden, 0))


def _correlation(moments: Tensor, eps: float) -> Tensor:
    """Takes the root of each variance separately: their product would leave float32's range."""
    product, square_s, square_t = moments
    return product * (square_s + eps).rsqrt() * (square_t + eps).rsqrt()
