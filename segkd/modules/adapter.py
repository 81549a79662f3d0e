"""Aligns the student's channels with the teacher's."""

import math
from typing import Literal

from torch import nn


def channel_adapter(
    in_channels: int,
    out_channels: int,
    *,
    norm: Literal["none", "group"] = "none",
    always: bool = False,
) -> nn.Module:
    """A 1x1 convolution without bias, or the identity where the channels are equal already.

    The weights keep the variance of their input, so a published loss weight acts from step 0 as
    it does without an adapter. GroupNorm has no statistics per process; batch norm would.

    Args:
        norm: ``group`` adds a GroupNorm behind the convolution.
        always: make the convolution although the channels are equal.

    Returns:
        A module (B, in_channels, h, w) -> (B, out_channels, h, w).
    """
    if in_channels == out_channels and not always:
        return nn.Identity()
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="linear")
    if norm == "none":
        return convolution
    return nn.Sequential(convolution, nn.GroupNorm(math.gcd(32, out_channels), out_channels))
