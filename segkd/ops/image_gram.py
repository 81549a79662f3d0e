"""Inner products of whole feature maps, one row per image, with a gradient in closed form."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from segkd.ops.blocks import BlockSize
from segkd.ops.precision import full_precision

# Elements per block: on a CPU what fits the cache, elsewhere enough to keep a device busy without
# a second copy of the largest maps.
_BLOCK = BlockSize(2**18, 2**24)


def image_gram(maps: Tensor, mask: Tensor) -> Tensor:
    """Q Qᵀ with a row of Q per image: all of its values, 0 at invalid positions.

    Half types are raised to float32, regardless of autocast and TF32 settings. There is no double
    backward.

    Args:
        maps: (B, C, h, w); may be NaN at invalid positions.
        mask: (B, h, w) bool, True where positions are valid.

    Returns:
        (B, B), float32 or wider.
    """
    return _ImageGram.apply(maps, mask)


class _ImageGram(torch.autograd.Function):
    """Keeps its inputs."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, mask: Tensor) -> Tensor:
        dtype = torch.promote_types(maps.dtype, torch.float32)
        total = maps.new_zeros(len(maps), len(maps), dtype=dtype)
        with full_precision(maps.device):
            for _, rows in _blocks(maps, mask, dtype):
                total = total.addmm(rows, rows.T)
        ctx.save_for_backward(maps, mask)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        maps, mask = ctx.saved_tensors
        gradient = torch.empty_like(maps)
        both = upstream + upstream.T
        with full_precision(maps.device):
            for part, rows in _blocks(maps, mask, upstream.dtype):
                gradient[:, part] = (both @ rows).view_as(gradient[:, part])
        return gradient.masked_fill_(~mask.unsqueeze(1), 0), None


def _blocks(maps: Tensor, mask: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Slices of channels, and the values of all images there as rows (B, channels·h·w)."""
    budget = _BLOCK.on(maps.device)
    length = max(1, budget // max(1, maps[:, :1].numel()))
    hidden = ~mask.unsqueeze(1)
    for start in range(0, maps.shape[1], length):
        part = slice(start, start + length)
        yield part, maps[:, part].to(dtype).masked_fill(hidden, 0).flatten(1)
