"""Attention-based fusion of one stage with the deeper ones, after ReviewKD.

Chen, Liu, Zhao, Jia: Distilling Knowledge via Knowledge Review. CVPR 2021, arXiv 2104.09044.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkd.modules.adapter import start_gain
from segkd.modules.masked_norm import MaskedGroupNorm


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
        nn.init.constant_(self.expand_norm.weight, start_gain() ** 0.5)  # see channel_adapter

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
