"""Normalisation that ignores padding."""

import math

import torch
from torch import Tensor, nn


class MaskedGroupNorm(nn.Module):
    """GroupNorm with mean and variance over the valid positions; the others become 0.

    The padding of a crop would otherwise change how its valid part is scaled. Statistics are per
    image, so nothing is shared between processes.

    Args:
        channels: C; groups are the greatest common divisor of C and 32.
        eps: added to the variance.
    """

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups, self.eps = math.gcd(32, channels), eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, maps: Tensor, mask: Tensor) -> Tensor:
        """Normalises the valid positions of each image.

        Args:
            maps: (B, C, h, w).
            mask: (B, h, w) bool, True where positions are valid.

        Returns:
            (B, C, h, w), float32 or wider.
        """
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
        grouped = maps.unflatten(1, (self.groups, -1))  # (B, G, C/G, h, w)
        hidden = ~mask[:, None, None]
        count = mask.sum(dim=(1, 2)).clamp(min=1).view(-1, 1, 1, 1, 1) * grouped.shape[2]
        axes = (2, 3, 4)
        mean = grouped.masked_fill(hidden, 0).sum(axes, keepdim=True) / count
        centred = (grouped - mean).masked_fill(hidden, 0)
        variance = centred.square().sum(axes, keepdim=True) / count
        weight, bias = (p.view(1, self.groups, -1, 1, 1) for p in (self.weight, self.bias))
        scaled = centred * ((variance + self.eps).rsqrt() * weight) + bias
        return scaled.masked_fill(hidden, 0).flatten(1, 2)
