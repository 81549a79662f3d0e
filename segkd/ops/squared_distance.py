"""Sums over channels of squares, squared differences and sizes, with a gradient in closed form.

Autograd keeps the difference and makes several copies of the maps (difference, masked difference,
square). Here blocks that fit the cache are read twice, for the value and for the gradient, and
nothing but the two maps is kept.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from segkd.ops.masked import position_mask, require_equal_shapes

# Elements per block: on a CPU what fits the cache, elsewhere enough to keep a device busy without
# a second copy of the largest maps.
_BLOCK_CPU, _BLOCK_DEVICE = 2**18, 2**24


def squared_distance(
    student: Tensor,
    teacher: Tensor,
    *,
    channel_weight: Tensor | None = None,
    margin: Tensor | None = None,
) -> Tensor:
    """Σ_c w_c · (s_c − t_c)² at each position.

    Half types are raised to float32. Both maps may need a gradient; there is no double backward.
    A position whose upstream gradient is 0 gets a gradient of 0, also where maps are NaN there.

    Args:
        student, teacher: (B, C, h, w).
        channel_weight: w, (B, C), without gradient; None: 1.
        margin: (C,), the partial distance of OFD: t is raised to the margin and gets no gradient,
            and channels count where s > t or t > 0. None: the plain distance.

    Returns:
        (B, h, w), float32 or wider.

    Raises:
        ValueError: the shapes of the maps differ.
    """
    require_equal_shapes(student, teacher)
    if margin is not None:
        teacher = teacher.detach()
    return _SquaredDistance.apply(student, teacher, channel_weight, margin)


def squared_norm(maps: Tensor) -> Tensor:
    """Σ_c F_c² at each position; precision and gradient as of ``squared_distance``.

    Args:
        maps: F, (B, C, h, w).

    Returns:
        (B, h, w), float32 or wider.
    """
    return _SquaredDistance.apply(maps, None, None, None)


def absolute_sums(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_c |F_c| at each position, and Σ |F_c| over the positions of each channel.

    Args:
        maps: F, (B, C, h, w), finite.

    Returns:
        (B, h, w) and (B, C), float32 or wider.
    """
    return _AbsoluteSums.apply(maps)


def masked_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean over valid positions and channels of the squared difference; 0 if none is valid.

    Args:
        student, teacher: (B, C, h, w).
        mask: (B, h, w) bool, True where positions are valid.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: the shapes differ.
    """
    distance = squared_distance(student, teacher).masked_fill(~position_mask(student, mask), 0)
    return distance.sum() / (mask.sum().clamp(min=1) * student.shape[1])


class _SquaredDistance(torch.autograd.Function):
    """Keeps its inputs; the difference is computed again for the gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor | None,
        channel_weight: Tensor | None,
        margin: Tensor | None,
    ) -> Tensor:
        dtype = torch.promote_types(student.dtype, torch.float32)
        if teacher is not None:
            dtype = torch.promote_types(dtype, teacher.dtype)
        value = student.new_zeros(student.shape[0], *student.shape[2:], dtype=dtype)
        for part in _blocks(student):
            square = _difference(student, teacher, margin, part, dtype).square()
            if channel_weight is not None:
                square *= channel_weight[part][:, :, None, None]
            value[part[0]] += square.sum(dim=1)
        ctx.save_for_backward(student, teacher, channel_weight, margin)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        student, teacher, channel_weight, margin = ctx.saved_tensors
        towards_student, towards_teacher = ctx.needs_input_grad[:2]
        of_student = torch.empty_like(student) if towards_student else None
        of_teacher = torch.empty_like(teacher) if towards_teacher else None
        twice = (2 * upstream).unsqueeze(1)
        unused = twice == 0  # NaN there times 0 would be NaN
        for part in _blocks(student):
            slope = _difference(student, teacher, margin, part, upstream.dtype) * twice[part[0]]
            slope.masked_fill_(unused[part[0]], 0)
            if channel_weight is not None:
                slope *= channel_weight[part][:, :, None, None]
            if of_student is not None:
                of_student[part] = slope
            if of_teacher is not None:
                of_teacher[part] = -slope
        return of_student, of_teacher, None, None


class _AbsoluteSums(torch.autograd.Function):
    """Keeps its input; signs are taken again for the gradient."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(maps.dtype, torch.float32)
        of_positions = maps.new_zeros(maps.shape[0], *maps.shape[2:], dtype=dtype)
        of_channels = maps.new_empty(maps.shape[:2], dtype=dtype)
        for part in _blocks(maps):
            sizes = maps[part].to(dtype).abs()
            of_positions[part[0]] += sizes.sum(dim=1)
            of_channels[part] = sizes.sum(dim=(2, 3))
        ctx.save_for_backward(maps)
        return of_positions, of_channels

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_positions: Tensor, of_channels: Tensor) -> Tensor:
        (maps,) = ctx.saved_tensors
        gradient = torch.empty_like(maps)
        for part in _blocks(maps):
            slope = of_positions[part[0]].unsqueeze(1) + of_channels[part][:, :, None, None]
            gradient[part] = maps[part].sign() * slope
        return gradient


def _difference(
    student: Tensor,
    teacher: Tensor | None,
    margin: Tensor | None,
    part: tuple[slice, slice],
    dtype: torch.dtype,
) -> Tensor:
    """s − t of a block, or s itself; 0 where OFD's partial distance does not count."""
    mine = student[part].to(dtype)
    if teacher is None:
        return mine
    theirs = teacher[part].to(dtype)
    if margin is None:
        return mine - theirs
    target = torch.maximum(theirs, margin[part[1]].to(dtype).view(-1, 1, 1))
    difference = mine - target
    return difference.masked_fill_((difference <= 0) & (target <= 0), 0)


def _blocks(maps: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of images and of channels that cover the maps."""
    budget = _BLOCK_CPU if maps.device.type == "cpu" else _BLOCK_DEVICE
    images, per_image = len(maps), max(1, maps[:1].numel())
    length = max(1, budget // per_image)
    channels = max(1, budget * maps.shape[1] // per_image)
    for start in range(0, images, length):
        for first in range(0, maps.shape[1], channels):
            yield slice(start, start + length), slice(first, first + channels)
