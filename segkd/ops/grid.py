"""Means over a grid of equal cells, whatever the size of the map."""

import torch
from torch import Tensor

_LEAST = 1e-3  # share of a cell that must be valid; less may be rounding


def grid_means(maps: Tensor, mask: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The mean over the valid part of each cell of a grid that divides the map evenly.

    A position counts with the share of its area that lies in the cell. So cells need not consist
    of whole positions, and may be smaller than one, and maps of any size have the same cells.

    Args:
        maps: (B, C, h, w).
        mask: (B, h, w) bool, True where positions are valid.
        grid: (gh, gw), rows and columns of cells.

    Returns:
        Means (B, C, gh, gw), float32 or wider, 0 in cells without a valid part, and (B, gh, gw)
        bool, False for these.
    """
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    rows, columns = (
        _shares(size, cells, maps) for size, cells in zip(maps.shape[-2:], grid, strict=True)
    )
    inside = mask.unsqueeze(1)
    with torch.autocast(maps.device.type, enabled=False):
        share = rows @ inside.to(maps.dtype) @ columns.mT
        total = rows @ maps.masked_fill(~inside, 0) @ columns.mT
    keep = share > _LEAST
    return (total / share.masked_fill(~keep, 1)).masked_fill(~keep, 0), keep.squeeze(1)


def _shares(size: int, cells: int, like: Tensor) -> Tensor:
    """(cells, size): the part of each cell, of length 1, that each position covers."""
    first = torch.arange(size, dtype=like.dtype, device=like.device) * (cells / size)
    low = torch.arange(cells, dtype=like.dtype, device=like.device).unsqueeze(1)
    covered = torch.minimum(first + cells / size, low + 1) - torch.maximum(first, low)
    return covered.clamp(min=0)
