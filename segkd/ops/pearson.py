"""Pearson correlations of two class-probability maps, along classes and along pixels."""

from collections.abc import Callable

import torch
from torch import Tensor


def pixel_correlation(student: Tensor, teacher: Tensor, *, eps: float) -> Tensor:
    """The correlation over the K classes, at each position.

    Args:
        student, teacher: (B, K, h, w).
        eps: added to both variances, so that a uniform distribution correlates with nothing.

    Returns:
        (B, h, w).
    """
    student = student - student.mean(1, keepdim=True)
    teacher = teacher - teacher.mean(1, keepdim=True)
    moments = [(a * b).mean(1) for a, b in _pairs(student, teacher)]
    return _correlation(*moments, eps)


def class_correlation(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    *,
    eps: float,
    all_sum: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """The correlation over all valid positions of all images, for each class.

    Args:
        student, teacher: (B, K, h, w); the teacher without gradient.
        mask: (B, h, w) bool, True where positions are valid.
        eps: added to both variances, so that a constant map correlates with nothing.
        all_sum: adds a tensor over processes, and its gradient too; called twice on each.

    Returns:
        (K,); the same on every process.
    """
    mask = mask.unsqueeze(1)
    maps = torch.cat([student.detach(), teacher]).masked_fill(~mask.repeat(2, 1, 1, 1), 0)
    totals = maps.sum((2, 3)).unflatten(0, (2, -1)).sum(1)  # (2, K)
    count = mask.sum().to(totals.dtype).expand(1, totals.shape[1])
    *totals, count = all_sum(torch.cat([totals, count]))
    # The means need no gradient: deviations from a mean sum to 0, so moving it changes nothing.
    means = [(total / count.clamp(min=1))[:, None, None] for total in totals]
    student = (student - means[0]).masked_fill(~mask, 0)
    teacher = (teacher - means[1]).masked_fill(~mask, 0)
    sums = torch.stack([(a * b).sum((0, 2, 3)) for a, b in _pairs(student, teacher)])
    return _correlation(*all_sum(sums) / count.clamp(min=1), eps)


def _pairs(student: Tensor, teacher: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    return (student, teacher), (student, student), (teacher, teacher)


def _correlation(product: Tensor, square_s: Tensor, square_t: Tensor, eps: float) -> Tensor:
    """The root of each variance alone: their product is out of float32's range too soon."""
    return product * (square_s + eps).rsqrt() * (square_t + eps).rsqrt()
