"""Aligns the student's channels with the teacher's."""

import torch
from torch import nn

START = 1e-2  # gain of a layer that predicts the teacher's features


def start_gain() -> float:
    """``START``, read at each call: benchmarks/adapters.py compares other values."""
    return START


def channel_adapter(
    in_channels: int,
    out_channels: int,
    *,
    always: bool = False,
    gain: float | None = None,
) -> nn.Module:
    """A 1x1 convolution without bias, or the identity if the channels are equal.

    It is initialised near zero: a random projection of unit gain is further from the teacher's
    features than zero is, and would pull the student towards noise until it is trained.

    Args:
        in_channels: of the student.
        out_channels: of the teacher.
        always: use a convolution even if the channels are equal.
        gain: initial standard deviation of the output over that of the input; None: ``START``.
            Use 1 if further layers or a normalisation follow, which a start near zero would only
            slow down.

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
