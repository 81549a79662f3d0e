"""Attention-based fusion of one stage with the deeper ones, after ReviewKD.

Chen, Liu, Zhao, Jia: Distilling Knowledge via Knowledge Review. CVPR 2021, arXiv 2104.09044.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskedGroupNorm(nn.Module):
    """GroupNorm whose mean and variance are those of the valid positions; the others become 0.

    The padding of a crop would otherwise change how its valid part is scaled. Nothing is shared
    between images, so processes need not agree on anything.
    """

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups, self.eps = math.gcd(32, channels), eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, maps: Tensor, mask: Tensor) -> Tensor:
        """(B, C, h, w) and (B, h, w) bool to (B, C, h, w), float32 or wider."""
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


class AttentionFusion(nn.Module):
    """A stage of the student, joined with what was fused from the deeper ones.

    Its features are brought to ``width`` channels; two maps in 0…1, made from both, say at each
    position how much of either goes on. A 3x3 convolution leads to the teacher's channels.

    Args:
        in_channels: channels of the student's stage.
        width: channels in which stages are fused, the same for all.
        out_channels: channels of the teacher's stage.
        deepest: there is nothing to fuse with.
    """

    def __init__(
        self, in_channels: int, width: int, out_channels: int, *, deepest: bool = False
    ) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(in_channels, width, kernel_size=1, bias=False)
        self.reduce_norm = MaskedGroupNorm(width)
        self.gates = None if deepest else nn.Conv2d(2 * width, 2, kernel_size=1)
        self.expand = nn.Conv2d(width, out_channels, kernel_size=3, padding=1, bias=False)
        self.expand_norm = MaskedGroupNorm(out_channels)
        for convolution in (self.reduce, self.expand):
            nn.init.kaiming_uniform_(convolution.weight, a=1)

    def forward(
        self, features: Tensor, mask: Tensor, deeper: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Fuses one stage.

        Args:
            features: (B, in_channels, h, w).
            mask: (B, h, w) bool; what features hold elsewhere reaches nothing.
            deeper: (B, width, h', w'), the second result of the next deeper stage; None for the
                deepest.

        Returns:
            (B, out_channels, h, w), to be compared with the teacher, and (B, width, h, w), for the
            next shallower stage; both are 0 at invalid positions.
        """
        fused = self.reduce_norm(self.reduce(features), mask)
        if self.gates is not None:
            deeper = F.interpolate(deeper, fused.shape[-2:], mode="nearest")
            deeper = deeper.masked_fill(~mask.unsqueeze(1), 0)
            own, other = self.gates(torch.cat([fused, deeper], dim=1)).sigmoid().split(1, dim=1)
            fused = fused * own + deeper * other
        return self.expand_norm(self.expand(fused), mask), fused
