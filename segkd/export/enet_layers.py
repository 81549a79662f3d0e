"""ENet's layers in the form that runtimes on CPUs compute fastest; all of the same values.

By onnxruntime's profiler PReLU took a third of ENet's time: it is not fused with the convolution
before it, and computed in another memory layout, with a conversion before and after it. Poolings
with indices took a sixth: each is computed twice, without vector instructions. OpenVINO's scatter
took more time than all the rest of the network.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkd.models.enet import DownBottleneck, UpBottleneck


class SplitPReLU(nn.Module):
    """``nn.PReLU`` with a slope a for each channel, as 1x1 convolutions of single channels.

        PReLU(x) = a x + (1 - a) max(x, 0)

    Runtimes fuse the sum and the maximum with the convolutions, and keep their memory layout.

    Args:
        original: has C slopes.
    """

    slope: Tensor
    rest: Tensor

    def __init__(self, original: nn.PReLU) -> None:
        super().__init__()
        slope = original.weight.detach().view(-1, 1, 1, 1)
        self.within = bool((slope <= 1).all())  # then (1 - a) max(x, 0) = max((1 - a) x, 0)
        self.register_buffer("slope", slope.clone())
        self.register_buffer("rest", 1 - slope)

    def forward(self, x: Tensor) -> Tensor:
        """The values of ``x`` (B, C, h, w), times the slope where they are negative."""
        channels = len(self.slope)
        if self.within:
            above = F.conv2d(x, self.rest, groups=channels).relu()
        else:
            above = F.conv2d(x.relu(), self.rest, groups=channels)
        return F.conv2d(x, self.slope, groups=channels) + above


class MaskDown(nn.Module):
    """ENet's ``DownBottleneck``, with a mask of the maxima instead of their indices.

    Args:
        original: its layers are used.
    """

    def __init__(self, original: DownBottleneck) -> None:
        super().__init__()
        self.extra = original.extra
        self.branch, self.activation = original.branch, original.activation

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) to (B, C', h/2, w/2), and the mask of its maxima, as ``first_maxima``."""
        shortcut = F.pad(F.max_pool2d(x, 2), (0, 0, 0, 0, 0, self.extra))
        return self.activation(shortcut + self.branch(x)), first_maxima(x)


class MaskUp(nn.Module):
    """ENet's ``UpBottleneck`` for the mask of ``MaskDown``.

    Args:
        original: its layers are used.
    """

    def __init__(self, original: UpBottleneck) -> None:
        super().__init__()
        self.shortcut, self.branch = original.shortcut, original.branch
        self.activation = original.activation

    def forward(self, x: Tensor, maxima: Tensor) -> Tensor:
        """(B, C, h, w) and a mask (B, C', 2h, 2w) to (B, C', 2h, 2w)."""
        return self.activation(_doubled(self.shortcut(x)) * maxima + self.branch(x))


def first_maxima(x: Tensor) -> Tensor:
    """(B, C, h, w) as ``x``: 1 where a value is the first of the largest ones of its 2x2 window.

    The first in rows and columns, as in ``max_pool2d(return_indices=True)``: windows of equal
    values are common where images are overexposed.
    """
    height, width = x.shape[2:]
    largest = x == _doubled(F.max_pool2d(x, 2))
    rows = torch.arange(height, device=x.device).remainder(2)[:, None]
    columns = torch.arange(width, device=x.device).remainder(2)
    rank = largest * (4 - 2 * rows - columns).to(x.dtype)
    return (rank == _doubled(F.max_pool2d(rank, 2))).to(x.dtype)


def _doubled(x: Tensor) -> Tensor:
    """(B, C, h, w) to (B, C, 2h, 2w), each value four times."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
