"""Leads the student's vectors into the teacher's space."""

from torch import nn


def node_projector(in_channels: int, out_channels: int) -> nn.Module:
    """Two 1x1 convolutions with a normalisation and a ReLU between, on nodes (…, C).

    The normalisation is over the channels of a position (a GroupNorm of one group per position):
    it needs no statistics per process, and padding has no part in it.

    Returns:
        A module (…, in_channels) -> (…, out_channels).
    """
    layers = nn.Sequential(
        nn.Linear(in_channels, out_channels, bias=False),
        nn.LayerNorm(out_channels, eps=1e-8),
        nn.ReLU(inplace=True),
        nn.Linear(out_channels, out_channels, bias=False),
    )
    for layer in (layers[0], layers[3]):
        nn.init.kaiming_normal_(layer.weight)
    return layers
