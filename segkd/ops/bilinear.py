"""Bilinear interpolation of some rows or columns of a map, without making the others.

Positions are those of ``F.interpolate`` with ``align_corners=False``.
"""

import torch
from torch import Tensor

from segkd.ops.queued import queued


def neighbours(targets: range, scale: float, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Both source positions of each target, and the weight of the second, on the host.

    Args:
        targets: positions in the result; with a negative step the result is mirrored.
        scale: size of the source divided by that of the whole result.
        length: of the source.

    Returns:
        (n,) int64 twice, and (n,) float64 in [0, 1).
    """
    centres = torch.arange(targets.start, targets.stop, targets.step, dtype=torch.float64) + 0.5
    where = (centres * scale - 0.5).clamp(0, length - 1)
    first = where.floor()
    return first.long(), (first.long() + 1).clamp(max=length - 1), where - first


def blend(maps: Tensor, axis: int, first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """Linear interpolation along one axis between positions ``first`` and ``second``.

    Args:
        maps: of any shape.
        axis: of ``maps``.
        first, second: (n,) int64 positions on the host, see ``neighbours``.
        share: weight of the second, broadcast against the result; on the host.

    Returns:
        The shape of ``maps``, with n positions along the axis; ``maps`` itself if nothing changes.
    """
    device = maps.device
    if not share.any() and torch.equal(first, torch.arange(maps.shape[axis])):
        return maps
    near, far = (maps.index_select(axis, queued(index, device)) for index in (first, second))
    return torch.lerp(near, far, queued(share, device, maps.dtype))
