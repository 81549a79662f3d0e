"""Bands along the borders of classes, at the positions of a smaller map."""

import torch
from torch import Tensor


def class_bands(labels: Tensor, size: tuple[int, int], classes: int, width: int) -> Tensor:
    """Dilation less erosion of each class, by a square window, at (h, w) positions.

    A position is in the band of a class if the window around its pixel contains that class and
    another one. Void belongs to no class, so a border with void is none, and neither is the border
    of the image. Windows are collected row by row at the positions alone: neither labels at full
    size nor windows are unfolded per class, and nothing waits for the device.

    Args:
        labels: (B, H, W) int64; any value outside of 0 … K−1 is void.
        size: (h, w); a position's pixel is that of nearest-neighbour resizing.
        classes: K.
        width: side of the window in pixels of the labels, odd.

    Returns:
        (B, K, h, w) bool.
    """
    ids = torch.where((labels >= 0) & (labels < classes), labels, classes).unsqueeze(1)
    (rows, columns) = (
        _windows(full, small, width, labels.device)
        for full, small in zip(labels.shape[1:], size, strict=True)
    )
    shape = labels.shape[0], classes + 1, size[0], labels.shape[2]
    seen = torch.zeros(shape, dtype=torch.bool, device=labels.device)
    for row in rows:
        seen.scatter_(1, ids[:, :, row], True)
    near = seen[..., columns[0]]
    for column in columns[1:]:
        near = near | seen[..., column]
    near = near[:, :classes]
    return near & (near.sum(1, keepdim=True) > 1)


def _windows(full: int, small: int, width: int, device: torch.device) -> Tensor:
    """(width, small): for each offset the pixels, which stay inside of the image."""
    middle = torch.arange(small, device=device) * full // small
    offsets = torch.arange(width, device=device) - width // 2
    return (middle + offsets.unsqueeze(1)).clamp(0, full - 1)
