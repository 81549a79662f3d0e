"""Projects vectors of positions to another number of channels, as CIRKD does."""

from torch import nn


def node_projector(in_channels: int, out_channels: int, *, positive: bool = False) -> nn.Module:
    """Two 1x1 convolutions with a normalisation and a ReLU in between, on nodes (…, C).

    The normalisation is over the channels of a position (a GroupNorm of one group per position):
    it needs no statistics per process, and is unaffected by padding.

    Args:
        in_channels: of the student.
        out_channels: of the teacher.
        positive: start with positive outputs, as features after a ReLU are. Relations among
            channels do not see a common sign: from random ones, all may be learned with the wrong.

    Returns:
        A module (…, in_channels) -> (…, out_channels).
    """
    first = nn.Linear(in_channels, out_channels, bias=False)
    last = nn.Linear(out_channels, out_channels, bias=False)
    for layer in (first, last):
        nn.init.kaiming_normal_(layer.weight)
    if positive:
        last.weight.data.abs_()
    norm = nn.LayerNorm(out_channels, eps=1e-8)
    return nn.Sequential(first, norm, nn.ReLU(inplace=True), last)
