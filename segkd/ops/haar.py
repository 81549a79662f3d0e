"""The Haar wavelet transform of maps, orthonormal, and its exact inverse."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def haar(maps: Tensor) -> tuple[Tensor, Tensor]:
    """One level: halves a map into its averages and the details that they lack.

    Of each 2x2 block [[a, b], [c, d]]: the average (a + b + c + d) / 2, and the details
    (a - b + c - d) / 2 across, (a + b - c - d) / 2 down, (a - b - c + d) / 2 diagonally.

    Args:
        maps: (B, C, h, w) of even h and w.

    Returns:
        The averages (B, C, h/2, w/2) and the details (B, C, 3, h/2, w/2).
    """
    top, bottom = maps[..., ::2, :], maps[..., 1::2, :]
    total, down = top + bottom, top - bottom
    low = (total[..., ::2] + total[..., 1::2]) / 2
    across = (total[..., ::2] - total[..., 1::2]) / 2
    straight = (down[..., ::2] + down[..., 1::2]) / 2
    diagonal = (down[..., ::2] - down[..., 1::2]) / 2
    return low, torch.stack([across, straight, diagonal], dim=2)


def inverse_haar(low: Tensor, details: Tensor) -> Tensor:
    """The maps (B, C, h, w) of which ``haar`` made ``low`` and ``details``."""
    across, down, diagonal = details.unbind(dim=2)
    rows = []
    for sign in (1, -1):  # the upper and the lower row of each block
        straight, turned = low + sign * down, across + sign * diagonal
        pair = torch.stack([straight + turned, straight - turned], dim=-1) / 2
        rows.append(pair.flatten(-2))
    return torch.stack(rows, dim=-2).flatten(-3, -2)


def haar_levels(maps: Tensor, levels: int) -> tuple[Tensor, list[Tensor]]:
    """Several levels, each of the averages of the one before.

    Args:
        maps: (B, C, h, w) of any size: zeros are added below and to the right until both sides
            are multiples of 2^levels.
        levels: at least 1.

    Returns:
        The averages of the last level (B, C, h', w'), and the details of each level
        (B, C, 3, h_l, w_l), from fine to coarse.
    """
    low, details = F.pad(maps, _missing(maps, levels)), []
    for _ in range(levels):
        low, found = haar(low)
        details.append(found)
    return low, details


def inverse_haar_levels(low: Tensor, details: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """The maps (B, C, h, w) of which ``haar_levels`` made this; ``size`` is (h, w)."""
    for found in reversed(details):
        low = inverse_haar(low, found)
    return low[..., : size[0], : size[1]]


def whole_blocks(mask: Tensor, levels: int) -> list[Tensor]:
    """Per level, the coefficients that depend on valid positions alone.

    Args:
        mask: (B, h, w) bool, True where positions are valid.
        levels: as of ``haar_levels``.

    Returns:
        (B, h_l, w_l) bool for each level, shaped like its coefficients.
    """
    valid, found = F.pad(mask, _missing(mask, levels)), []
    for _ in range(levels):
        rows = valid[..., ::2, :] & valid[..., 1::2, :]
        valid = rows[..., ::2] & rows[..., 1::2]
        found.append(valid)
    return found


def _missing(maps: Tensor, levels: int) -> tuple[int, int, int, int]:
    """Columns and rows to add, as ``F.pad`` takes them."""
    height, width = maps.shape[-2:]
    return 0, -width % 2**levels, 0, -height % 2**levels
