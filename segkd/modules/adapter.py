"""Aligns the student's channels with the teacher's."""

import torch
from torch import nn

START = 1e-2  # gain of a layer that makes a prediction of the teacher


def start_gain() -> float:
    """``START``, read when it is needed: benchmarks/adapters.py compares with another one."""
    return START


def channel_adapter(
    in_channels: int,
    out_channels: int,
    *,
    always: bool = False,
    gain: float | None = None,
) -> nn.Module:
    """A 1x1 convolution without bias, or the identity where the channels are equal already.

    It starts near zero: a random projection of unit gain is further from the teacher's features
    than nothing at all, and would pull the student towards noise until it has learned.

    Args:
        always: make the convolution although the channels are equal.
        gain: standard deviation of the output over that of the input at the start; None:
            ``START``. 1 where further layers or a normalisation follow: a start near zero would
            only slow those down.

    Returns:
        A module (B, in_channels, h, w) -> (B, out_channels, h, w).
    """
    if in_channels == out_channels and not always:
        return nn.Identity()
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="linear")
    with torch.no_grad():
        convolution.weight *= start_gain() if gain is None else gain
    return convolution
