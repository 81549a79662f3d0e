"""Kullback-Leibler divergence between two softmaxes, with its gradient in closed form.

The gradient of T²·KL(softmax(t/T) ‖ softmax(s/T)) in s is T·(softmax(s/T) − softmax(t/T)). It is
computed together with the value, so one tensor is kept for backward instead of autograd's four.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from segkd.ops.blocks import BlockSize
from segkd.ops.masked import position_mask
from segkd.ops.resize import match_sizes

# Elements per block: on a CPU what fits the cache, elsewhere enough to keep a device busy without
# doubling the memory of the largest maps.
_BLOCK = BlockSize(2**17, 2**24)
HUGE = 1e30  # instead of infinity


def softmax_kl(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor,
    *,
    dim: int,
    keep: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Σ weight · T² · KL(teacher ‖ student) over all rows; a row lies along ``dim``.

    Half types are raised to float32. Value and gradient are finite for saturated logits as well,
    and for exact log-probabilities (-inf); rows of weight 0 may contain anything, including NaN.
    The teacher gets no gradient; there is no double backward.

    Args:
        student: logits of any shape, or log-probabilities.
        teacher: the same shape.
        weight: a factor or a bool per row, broadcastable to the shape with size 1 along ``dim``.
        dim: axis of the distributions, 1 or 2.
        keep: bool, broadcastable to the shape; False entries are excluded from their distribution.
        temperature: T.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"softmax_kl: student has shape {tuple(student.shape)}, teacher {tuple(teacher.shape)}."
            " Align channels with segkd.modules.adapter.channel_adapter and sizes with "
            "segkd.ops.resize.match_sizes first"
        )
    return _SoftmaxKL.apply(student, teacher, weight, keep, dim, temperature)


def mean_softmax_kl(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor,
    *,
    keep: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """``softmax_kl`` along dim 1 by the sum of the weights: the weighted mean over all rows.

    Args:
        student: logits (B, K, …), or log-probabilities.
        teacher: the same shape; gets no gradient.
        weight: (B, …), a factor or a bool per row.
        keep: as of ``softmax_kl``.
        temperature: T.

    Returns:
        A scalar, float32 or wider; a differentiable zero if all weights are 0.

    Raises:
        ValueError: the shapes differ.
    """
    rows = weight.unsqueeze(1)
    total = softmax_kl(student, teacher, rows, dim=1, keep=keep, temperature=temperature)
    count = weight.sum()
    return total / torch.where(count > 0, count, 1).to(total.dtype)


def pixel_kl(
    student: Tensor, teacher: Tensor, *, mask: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """Mean over valid pixels of T² · KL(teacher ‖ student) over the classes.

    Args:
        student: logits (B, K, h, w).
        teacher: logits or log-probabilities (B, K, h', w'); gets no gradient.
        mask: (B, h, w) bool at the smaller of both sizes, True where pixels are valid; None: all.
        temperature: T.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no pixel is valid.

    Raises:
        ValueError: the mask has another shape, or the classes differ.
    """
    student, teacher = match_sizes(student, teacher.detach())
    weight = position_mask(student, mask)
    return mean_softmax_kl(student, teacher, weight, temperature=temperature)


class _SoftmaxKL(torch.autograd.Function):
    """Computes the gradient together with the value and keeps only it."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        weight: Tensor,
        keep: Tensor | None,
        dim: int,
        temperature: float,
    ) -> Tensor:
        dtype = torch.promote_types(student.dtype, teacher.dtype)
        dtype = torch.promote_types(dtype, torch.float32)
        gradient = torch.empty_like(student, dtype=dtype) if ctx.needs_input_grad[0] else None
        weight = weight.to(dtype).expand(_row_shape(student, dim))
        excluded = None if keep is None else (~keep).expand(student.shape)
        value = torch.zeros((), dtype=dtype, device=student.device)
        for part in _blocks(student, dim):
            out = None if excluded is None else excluded[part]
            mine = _scaled(student[part], dtype, out, temperature)
            theirs = _scaled(teacher[part], dtype, out, temperature)
            log_s, log_t = mine.log_softmax(dim), theirs.log_softmax(dim)
            # exp(log_t) would be slower on a CPU, by far so where the result is 0.
            p_t = theirs.softmax(dim)
            rows = log_t.sub_(log_s).mul_(p_t).sum(dim, keepdim=True)
            unused = weight[part] == 0  # NaN there times 0 would be NaN
            value = value + (rows * weight[part]).masked_fill_(unused, 0).sum()
            if gradient is not None:
                difference = mine.softmax(dim).sub_(p_t)
                torch.mul(difference, weight[part] * temperature, out=gradient[part])
                gradient[part].masked_fill_(unused, 0)
        if gradient is not None:
            ctx.save_for_backward(gradient)
            ctx.dtype = student.dtype
        return value * temperature**2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream).to(ctx.dtype), None, None, None, None, None


def _blocks(logits: Tensor, dim: int) -> Iterator[tuple[slice, ...]]:
    """Indices that cover the tensor in blocks of whole rows: images, else channels of an image."""
    budget = _BLOCK.on(logits.device)
    images, per_image = len(logits), max(1, logits[:1].numel())
    length = max(1, budget // per_image)
    for start in range(0, images, length):
        part = slice(start, start + length)
        if per_image <= budget or dim == 1:
            yield (part,)
            continue
        channels = max(1, budget * logits.shape[1] // per_image)
        for first in range(0, logits.shape[1], channels):
            yield part, slice(first, first + channels)


def _scaled(
    logits: Tensor, dtype: torch.dtype, excluded: Tensor | None, temperature: float
) -> Tensor:
    """A copy of logits / T; excluded ones are low enough to vanish in a softmax.

    They are finite, so a row without any kept entry is uniform instead of NaN.
    """
    logits = logits.to(dtype).clamp(-HUGE, HUGE)  # exact log-probabilities: 0 · log 0 is 0
    if temperature != 1.0:
        logits /= temperature
    if excluded is not None:
        logits.masked_fill_(excluded, torch.finfo(dtype).min / 2)
    return logits


def _row_shape(logits: Tensor, dim: int) -> list[int]:
    shape = list(logits.shape)
    shape[dim] = 1
    return shape
