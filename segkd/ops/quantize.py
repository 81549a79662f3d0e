"""Uniform quantisation of weights and activations, with straight-through gradients.

Weights are divided into groups (the whole tensor, output channels, or buckets of consecutive
values), each with its own grid. ``symmetric`` is what integer arithmetic computes with: 0 is a
level, and a scale is all there is to store. ``range`` is that of the paper (arXiv 1802.05668).

    symmetric: w ↦ s · round(w / s),              s = max |w| / (2^(b−1) − 1)
    range:     w ↦ l + (h − l) · round(n x) / n,  x = (w − l) / (h − l),  n = 2^b − 1,
               l and h the smallest and the largest value of the group
"""

from typing import Any

import torch
from torch import Tensor

from segkd.ops.quantize_kinds import Grid, Per


def quantize(
    weight: Tensor,
    *,
    bits: int,
    per: Per = "channel",
    grid: Grid = "symmetric",
    axis: int = 0,
    bucket_size: int = 256,
) -> Tensor:
    """The nearest values on the grid of each group; the gradient passes unchanged.

    Args:
        weight: any shape; its own values determine the grid, so nothing is clipped.
        bits: b; symmetric grids have 2^b − 1 levels, the others 2^b.
        per: what has a grid of its own: the tensor, each index of ``axis``, or each ``bucket_size``
            consecutive values (the last bucket may be smaller).
        grid: see the module.
        axis: that of the output channels.
        bucket_size: size of a bucket.

    Returns:
        The shape and dtype of ``weight``. A group of equal values keeps them exactly on a grid of
        kind ``range``, a group of zeros on both.
    """
    return _Quantize.apply(weight, bits, per, grid, axis, bucket_size)


def group_count(shape: torch.Size, per: Per, axis: int, bucket_size: int) -> int:
    """Number of groups of a weight of this shape; see ``quantize``."""
    if per == "tensor":
        return 1
    return shape[axis] if per == "channel" else -(-shape.numel() // bucket_size)


def levels(weight: Tensor, scale: Tensor) -> Tensor:
    """Integers k of values ``k · scale``, rounded; 0 where ``scale`` is 0.

    Args:
        weight: any shape.
        scale: broadcasts with ``weight``.
    """
    return (weight / torch.where(scale > 0, scale, torch.ones_like(scale))).round()


def symmetric_scale(weight: Tensor, bits: int, per: Per, axis: int) -> Tensor:
    """The scale of each output channel (C,), equal ones for ``per="tensor"``.

    Args:
        weight: any shape, C indices along ``axis``.
        bits: b.
        per: ``tensor`` or ``channel``.
        axis: that of the output channels.
    """
    rows = weight.detach().movedim(axis, 0).flatten(1)
    largest = rows.abs().amax(1)
    if per == "tensor":
        largest = largest.amax().expand_as(largest)
    return largest / (2 ** (bits - 1) - 1)


def quantize_activation(values: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Rounds to 2^b − 1 equal steps of a range that is widened to contain 0, a level.

    Values outside are clipped and have no gradient.

    Args:
        values: any shape; computed in float32.
        low, high: 0-d float32, the range.
        bits: b.
    """
    scale, zero = activation_grid(low.float(), high.float(), bits)
    most = 2**bits - 1
    if torch.compiler.is_compiling():  # with sizes that vary, torch's operator would end the graph
        return _Round.apply(values.float(), scale, zero, most).to(values.dtype)
    rounded = torch.fake_quantize_per_tensor_affine(values.float(), scale, zero, 0, most)
    return rounded.to(values.dtype)


def activation_grid(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point (int32) of ``quantize_activation``; both 0-d."""
    steps = 2**bits - 1
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = (high - low) / steps
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return scale, (-low / scale).round().clamp(0, steps).to(torch.int32)


class _Round(torch.autograd.Function):
    """``torch.fake_quantize_per_tensor_affine`` in plain operations."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, zero: Tensor, most: int) -> Tensor:
        position = (values * scale.reciprocal()).round() + zero
        ctx.save_for_backward((position >= 0) & (position <= most))
        return (position.clamp(0, most) - zero) * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return gradient * ctx.saved_tensors[0], None, None, None


class _Quantize(torch.autograd.Function):
    """``quantize``; a Function, because ``w + (q - w).detach()`` would round q once more."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bits: int, per: Per, grid: Grid, axis: int, bucket_size: int
    ) -> Tensor:
        rows = _grouped(weight, per, axis, bucket_size)
        rows = _symmetric(rows, bits) if grid == "symmetric" else _ranged(rows, bits)
        # Not after the views: torch 2.11 compiles a `to` that changes nothing to no gradient.
        return _ungrouped(rows.to(weight.dtype), weight.shape, per, axis)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        return gradient, None, None, None, None, None


def _symmetric(rows: Tensor, bits: int) -> Tensor:
    scale = rows.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return levels(rows, scale) * scale


def _ranged(rows: Tensor, bits: int) -> Tensor:
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    step = (high - low) / (2**bits - 1)
    return low + levels(rows - low, step) * step


def _grouped(weight: Tensor, per: Per, axis: int, bucket_size: int) -> Tensor:
    """The groups as rows, in float32 or wider."""
    weight = weight if weight.dtype == torch.float64 else weight.float()
    if per == "tensor":
        return weight.reshape(1, -1)
    if per == "channel":
        return weight.movedim(axis, 0).reshape(weight.shape[axis], -1)
    flat = weight.reshape(-1)
    missing = -flat.numel() % bucket_size
    # Filled up with one of its values, which changes neither the smallest nor the largest.
    return torch.cat([flat, flat[-1:].expand(missing)]).view(-1, bucket_size)


def _ungrouped(rows: Tensor, shape: torch.Size, per: Per, axis: int) -> Tensor:
    if per != "channel":
        return rows.reshape(-1)[: shape.numel()].view(shape)
    moved = [shape[axis], *(side for n, side in enumerate(shape) if n != axis)]
    return rows.view(moved).movedim(0, axis)
