"""Means and norms over the valid positions of maps, finite if none is valid or all are zero."""

import torch
from torch import Tensor


def position_mask(maps: Tensor, mask: Tensor | None) -> Tensor:
    """Checks a mask, or makes one in which every position is valid.

    Args:
        maps: (B, C, h, w).
        mask: (B, h, w); None: all positions are valid.

    Returns:
        (B, h, w), bool if ``mask`` is None.

    Raises:
        ValueError: the mask has another shape than the maps' positions.
    """
    expected = (maps.shape[0], *maps.shape[-2:])
    if mask is None:
        return torch.ones(expected, dtype=torch.bool, device=maps.device)
    if mask.shape != expected:
        raise ValueError(
            f"the mask has shape {tuple(mask.shape)}, expected {expected}: images and the smaller "
            "size of both maps. Resize it by nearest neighbour"
        )
    return mask


def require_equal_shapes(student: Tensor, teacher: Tensor) -> None:
    """Checks that two tensors (B, C, h, w) have one shape.

    Raises:
        ValueError: they do not; names what aligns channels and sizes.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"student has shape {tuple(student.shape)}, teacher {tuple(teacher.shape)}. Align "
            "channels with segkd.modules.adapter.channel_adapter and sizes with "
            "segkd.ops.resize.match_sizes first"
        )


def image_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of values (B,) over the images in which ``mask`` (B, h, w) has a valid position."""
    images = mask.flatten(1).any(dim=1)
    return values.masked_fill(~images, 0).sum() / images.sum().clamp(min=1)


def count_images(mask: Tensor) -> Tensor:
    """Number of images in which ``mask`` (B, h, w) has a valid position, for ``Term.count``."""
    return mask.flatten(1).any(dim=1).sum(dtype=torch.float64)


def peaks(maps: Tensor, eps: float) -> Tensor:
    """The largest size in each of (B, C, N) and at least ``eps``: (B, C, 1), without gradient.

    Of a map of zeros it is infinite: divided by that it stays zero, and gets no gradient, where a
    small number would make one as steep as its inverse.
    """
    largest = maps.detach().abs().amax(dim=2, keepdim=True)
    return largest.clamp(min=eps).masked_fill(largest == 0, torch.inf)


def unit_maps(maps: Tensor, mask: Tensor, *, eps: float = 1e-12) -> Tensor:
    """Scales each map to L2 norm 1 over its valid positions; a map of zeros stays zero,
    without gradient.

    Maps are divided by their peak before squaring, so nothing overflows; ``eps`` is added to the
    mean of squares of a map with peak 1, so its effect does not depend on the resolution.

    Args:
        maps: (B, C, h, w).
        mask: (B, h, w) bool, True where positions are valid.
        eps: added to the mean square.

    Returns:
        (B, C, N), zero at invalid positions.
    """
    maps = maps.masked_fill(~mask.unsqueeze(1), 0).flatten(2)
    count = mask.flatten(1).sum(1).clamp(min=1).to(maps.dtype).view(-1, 1, 1)
    maps = maps / peaks(maps, eps)
    mean_square = maps.square().sum(dim=2, keepdim=True) / count
    return maps * ((mean_square + eps) * count).rsqrt()
