"""Foreground pixels, and the weight of each position of foreground or background."""

from collections.abc import Sequence

import torch
from torch import Tensor

from segkd.ops.known import class_mask


def areas_of(ids: Tensor, number: int) -> Tensor:
    """Counts of each id per image.

    Args:
        ids: (B, N) int64, 0 … ``number``.
        number: of ids, K; the id K is void.

    Returns:
        (B, K + 1) int64.
    """
    areas = ids.new_zeros(ids.shape[0], number + 1)
    return areas.scatter_add_(1, ids, torch.ones_like(ids))


def marked_foreground(labels: Tensor, number: int, void: int, classes: Sequence[int]) -> Tensor:
    """1 + label at foreground pixels, else 0, so that max pooling keeps thin objects.

    Args:
        labels: (B, H, W) int64.
        number: of classes, K.
        void: the label of neither side.
        classes: of the foreground; empty: in each image those below its mean class area.

    Returns:
        (B, H, W) int64.
    """
    ids = labels.masked_fill(labels == void, number).flatten(1)
    if classes:
        chosen = class_mask(tuple(classes), number + 1, ids.device).flatten()[ids]
    else:
        areas = areas_of(ids, number)
        areas[:, number] = 0
        present = (areas > 0).sum(1, keepdim=True)
        small = (areas > 0) & (areas * present < areas.sum(1, keepdim=True))
        chosen = small.gather(1, ids)
    return ((ids + 1) * chosen).view_as(labels)


def side_shares(side: Tensor, regions: Tensor | None, number: int) -> Tensor:
    """The weight of each position: 1 on the side, or 1 / area of its region there, else 0.

    Args:
        side: (B, h, w) bool.
        regions: (B, h, w) int64, ids below ``number`` on the side; None: positions weigh 1.
        number: of ids.

    Returns:
        (B, h, w) float64; its sum is the number of positions, or of regions over all images.
    """
    if regions is None:
        return side.double()
    ids = regions.masked_fill(~side, number).flatten(1)
    return side / areas_of(ids, number).gather(1, ids).view_as(side).double()
