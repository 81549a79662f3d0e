"""Resizes maps to their common size: the element-wise smallest one, by averaging, never up."""

from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor


def common_size(*maps: Tensor) -> tuple[int, int]:
    """The element-wise smallest (h, w) of tensors (B, C, h, w)."""
    return min(m.shape[-2] for m in maps), min(m.shape[-1] for m in maps)


@overload
def match_sizes(
    first: Tensor, second: Tensor, /, *, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]: ...


@overload
def match_sizes(*maps: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]: ...


def match_sizes(*maps: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
    """Reduces maps to ``common_size`` with ``adaptive_avg_pool2d``; maps of that size are kept.

    Args:
        maps: (B, C_i, h_i, w_i) each, e.g. of student and teacher.
        mask: (B, h, w) bool at the common size, True where positions are valid. Values elsewhere
            become 0, so that a NaN there cannot reach a loss by a product with 0. None: all values
            are kept.

    Returns:
        (B, C_i, h, w) each; half types are raised to float32.
    """
    size = common_size(*maps)
    raised = (m.to(torch.promote_types(m.dtype, torch.float32)) for m in maps)
    matched = (m if m.shape[-2:] == size else F.adaptive_avg_pool2d(m, size) for m in raised)
    if mask is None or mask.shape[1:] != size:  # a wrong shape is reported where the mask is used
        return tuple(matched)
    hidden = ~mask.unsqueeze(1)
    return tuple(m.masked_fill(hidden, 0) for m in matched)


def reduce_valid(maps: Tensor, mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Averages each cell over its valid positions alone, for maps that mean nothing elsewhere.

    Args:
        maps: (B, C, h, w).
        mask: (B, h, w) bool, True where positions are valid.
        size: the smaller (h', w'), as of ``common_size``.

    Returns:
        (B, C, h', w'), 0 in cells without a valid position; ``maps`` if it has that size already.
    """
    if maps.shape[-2:] == size:
        return maps
    inside = mask.unsqueeze(1)
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32)).masked_fill(~inside, 0)
    share = F.adaptive_avg_pool2d(inside.to(maps.dtype), size)
    return F.adaptive_avg_pool2d(maps, size) / torch.where(share > 0, share, 1)


def good_size(size: tuple[float, float], divisor: int) -> tuple[int, int]:
    """The nearest (H, W) whose sides are multiples of ``divisor``."""
    height, width = (max(1, round(side / divisor)) * divisor for side in size)
    return height, width
