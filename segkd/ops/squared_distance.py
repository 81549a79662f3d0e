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

from segkd.ops.blocks import BlockSize
from segkd.ops.masked import position_mask, require_equal_shapes

# Elements per block: on a CPU what fits the cache, elsewhere enough to keep a device busy without
# a second copy of the largest maps.
_BLOCK = BlockSize(2**18, 2**24)


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
        rooms = _Rooms(student, dtype)
        for part in _blocks(student):
            room = rooms.first(student[part])
            square = _difference(student, teacher, margin, part, room, rooms).square_()
            if channel_weight is not None:
                square *= channel_weight[part][:, :, None, None]
            value[part[0]] += square.sum(dim=1)
        ctx.save_for_backward(student, teacher, channel_weight, margin)
        ctx.finite = _known_to_be_finite(value)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        student, teacher, channel_weight, margin = ctx.saved_tensors
        towards_student, towards_teacher = ctx.needs_input_grad[:2]
        of_student = torch.empty_like(student) if towards_student else None
        of_teacher = torch.empty_like(teacher) if towards_teacher else None
        twice = (2 * upstream).unsqueeze(1)
        unused = twice == 0
        rooms = _Rooms(student, upstream.dtype)
        # The gradient's own memory is the first room, unless a half type has to be rounded into it.
        in_place = of_student if student.dtype == upstream.dtype else None
        for part in _blocks(student):
            room = rooms.first(student[part]) if in_place is None else in_place[part]
            slope = _difference(student, teacher, margin, part, room, rooms).mul_(twice[part[0]])
            if not ctx.finite:  # NaN times 0 would be NaN
                slope.masked_fill_(unused[part[0]], 0)
            if channel_weight is not None:
                slope *= channel_weight[part][:, :, None, None]
            if of_student is not None and in_place is None:
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
        rooms = _Rooms(maps, dtype)
        for part in _blocks(maps):
            sizes = torch.abs(maps[part].to(dtype), out=rooms.first(maps[part]))
            of_positions[part[0]] += sizes.sum(dim=1)
            of_channels[part] = sizes.sum(dim=(2, 3))
        ctx.save_for_backward(maps)
        return of_positions, of_channels

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_positions: Tensor, of_channels: Tensor) -> Tensor:
        (maps,) = ctx.saved_tensors
        gradient = torch.empty_like(maps)
        rooms = _Rooms(maps, of_positions.dtype)
        for part in _blocks(maps):
            parts = of_positions[part[0]].unsqueeze(1), of_channels[part][:, :, None, None]
            slope = torch.add(*parts, out=rooms.first(maps[part]))
            gradient[part] = slope.mul_(maps[part].sign())
        return gradient


class _Rooms:
    """Memory for two blocks, made once: fresh memory for each costs more than the arithmetic."""

    def __init__(self, maps: Tensor, dtype: torch.dtype) -> None:
        self._largest = maps[next(_blocks(maps), slice(0))]
        self._dtype = dtype
        self._rooms: dict[str, Tensor] = {}

    def first(self, block: Tensor) -> Tensor:
        """Room for a block; the last blocks may be smaller than the others."""
        return self._room("first", block)

    def second(self, block: Tensor) -> Tensor:
        """The same beside the first."""
        return self._room("second", block)

    def _room(self, name: str, block: Tensor) -> Tensor:
        if name not in self._rooms:
            self._rooms[name] = torch.empty_like(self._largest, dtype=self._dtype)
        images, channels = block.shape[:2]
        return self._rooms[name][:images, :channels]


def _known_to_be_finite(values: Tensor) -> bool:
    """Whether all values are finite, where asking does not wait for a device or break a graph."""
    if values.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return bool(values.isfinite().all())


def _difference(
    student: Tensor,
    teacher: Tensor | None,
    margin: Tensor | None,
    part: tuple[slice, slice],
    room: Tensor,
    rooms: _Rooms,
) -> Tensor:
    """s − t of a block, or s itself, in ``room``; 0 where OFD's partial distance does not count."""
    mine = student[part].to(room.dtype)
    if teacher is None:
        return room.copy_(mine)
    theirs = teacher[part].to(room.dtype)
    if margin is None:
        return torch.sub(mine, theirs, out=room)
    least = margin[part[1]].to(room.dtype).view(-1, 1, 1)
    target = torch.maximum(theirs, least, out=rooms.second(theirs))
    difference = torch.sub(mine, target, out=room)
    # A target of 0 or below is passed from above only: a lower bound of 0, and none elsewhere.
    bound = target.gt_(0).mul_(torch.finfo(room.dtype).min)
    return torch.maximum(difference, bound, out=difference)


def _blocks(maps: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of images and of channels that cover the maps."""
    budget = _BLOCK.on(maps.device)
    images, per_image = len(maps), max(1, maps[:1].numel())
    length = max(1, budget // per_image)
    channels = max(1, budget * maps.shape[1] // per_image)
    for start in range(0, images, length):
        for first in range(0, maps.shape[1], channels):
            yield slice(start, start + length), slice(first, first + channels)
