"""ReviewKD: each stage of the student, fused with the deeper ones, regresses the teacher's stage.

Chen, Liu, Zhao, Jia: Distilling Knowledge via Knowledge Review. CVPR 2021, arXiv 2104.09044.

    L = Σ_stages HCL(out_i, F_t^i),   out_i from F_s^i and the deeper stages (attention fusion)
    HCL(s, t) = Σ_j 2^-j · mean (pool_j(s) − pool_j(t))² / Σ_j 2^-j,   j = 0: no pooling,
                then grids of 4x4, 2x2 and 1x1 cells, as far as the map is larger

Taps: the last four stages of the encoder by default, from shallow to deep.
The public code normalises over the batch, ours over groups of channels and valid positions; it
pools any map to square grids, ours has roughly square cells, e.g. 4x8 on maps of 1:2. A cell is
the mean of its valid positions, weighted by their share. The code's globally pooled extra stage is
for classification. Its weight ramps up over 20 epochs: here use the key ``warmup``, in steps.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn

from segkd.errors import ConfigError
from segkd.methods.base import BuildContext, Context, Conversion, Weight
from segkd.methods.shared.feature_scale import ScaleKeys
from segkd.methods.shared.tapped import TapListKeys, TapListMethod
from segkd.modules.adapter import start_gain
from segkd.modules.masked_norm import MaskedGroupNorm
from segkd.ops.masked import count_images, image_mean, position_mask, require_equal_shapes
from segkd.ops.resize import common_size, match_sizes
from segkd.structures import Batch, Outputs, Term

_CELLS = (4, 2, 1)  # along the shorter side
_WIDEST = 512


def review_kd_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], *, mask: Tensor | None = None
) -> Tensor:
    """Sum over stages of the hierarchical context loss.

    Args:
        student: fused stages, each (B, C_i, h_i, w_i).
        teacher: as many, each (B, C_i, h'_i, w'_i); detached.
        mask: (B, h, w) bool at any size, True where positions are valid, taken at the smaller
            size of each pair by nearest neighbour; None: all. Images without any valid position
            are excluded from the mean.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no position is valid.

    Raises:
        ValueError: no stages, unequal numbers of them, or different channels.
    """
    if len(student) != len(teacher) or not student:
        raise ValueError(
            f"got {len(student)} stages of the student and {len(teacher)} of the teacher, expected "
            "at least one, and the same number of each"
        )
    stages = zip(student, teacher, strict=True)
    return torch.stack([_stage_loss(s, t.detach(), mask) for s, t in stages]).sum()


def _stage_loss(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    size = common_size(student, teacher)
    if mask is not None and mask.shape[-2:] != size:
        mask = F.interpolate(mask.unsqueeze(1).float(), size, mode="nearest").squeeze(1).bool()
    student, teacher = match_sizes(student, teacher, mask=mask)
    require_equal_shapes(student, teacher)
    mask = position_mask(student, mask)
    difference = (student - teacher).masked_fill(~mask.unsqueeze(1), 0)
    share = mask.unsqueeze(1).to(difference.dtype)
    total, factors = _weighted_square(difference, share), 1.0
    for number, grid in enumerate(_grids(*size), start=1):
        cells = F.adaptive_avg_pool2d(share, grid)
        # Below the share of a cell with one valid position are only empty cells, with mean 0.
        least = 0.5 / (size[0] * size[1])
        means = F.adaptive_avg_pool2d(difference, grid) / cells.clamp(min=least)
        total = total + 2**-number * _weighted_square(means, cells)
        factors += 2**-number
    return image_mean(total, mask) / factors


def _weighted_square(values: Tensor, share: Tensor) -> Tensor:
    """(B,): mean over channels and positions of squares, positions weighted by ``share``."""
    squares = (values.square().mean(dim=1, keepdim=True) * share).sum(dim=(1, 2, 3))
    total = share.sum(dim=(1, 2, 3))
    return squares / total.masked_fill(total == 0, 1)


def _grids(h: int, w: int) -> list[tuple[int, int]]:
    """Numbers of cells along both sides, from fine to coarse, each smaller than the map."""
    rows, columns = max(1, round(h / w)), max(1, round(w / h))
    return [(n * rows, n * columns) for n in _CELLS if n * rows < h and n * columns < w]


class ReviewKDConfig(TapListKeys, ScaleKeys):
    """Keys of the method ``review_kd``."""

    weight: Weight = Field(12.0, description="factor of all terms; see docs/weights.md")
    taps: list[str] | None = Field(
        None,
        description="stages of the student, from shallow to deep; default: the last four",
    )
    width: NonNegativeInt = Field(
        0, description="channels of the fusion; 0: the student's last stage, at most 512"
    )


class ReviewKD(TapListMethod[ReviewKDConfig]):
    """Terms: one per tap of the student, each a mean over images."""

    name = "review_kd"
    kind = "feature"
    paper_weight = 1.0
    scale_free = False
    paper = "Chen et al.: Distilling Knowledge via Knowledge Review, arXiv 2104.09044"
    year = 2021
    equation = "Σ_stages Σ_j 2^-j · mean (pool_j(out_i − F_t^i))² / Σ_j 2^-j"
    cost = "a 1x1 and a 3x3 convolution per stage: 2·N·width·(C_s + 9·C_t) operations forward"
    default_taps = ("stage2", "stage3", "stage4", "stage5")
    conversions: ClassVar = {
        "mdistiller": Conversion(5, note="ResNet 32x4 to 8x4; square maps"),
        "mdistiller ImageNet": Conversion(1, note="ResNet-34 to 18; 8 to MobileNet"),
    }

    def build(self, spec: BuildContext) -> None:
        strides = [spec.student[tap].stride for tap in self.pairs]
        if strides != sorted(strides):
            raise ConfigError(
                f"review_kd: taps {', '.join(self.pairs)} have the strides "
                f"{', '.join(map(str, strides))}: name them from shallow to deep"
            )
        deepest = list(self.pairs)[-1]
        width = self.config.width or min(spec.student[deepest].channels, _WIDEST)
        self.fusions = nn.ModuleList(
            AttentionFusion(
                spec.student[mine].channels,
                width,
                spec.teacher[theirs].channels,
                deepest=mine == deepest,
            )
            for mine, theirs in self.pairs.items()
        )

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        terms: dict[str, Term] = {}
        fused: Tensor | None = None
        scaled = self.scaled(student, teacher, context)
        levels = list(zip(self.fusions, self.pairs, scaled, strict=True))
        for fuse, mine, pair in reversed(levels):
            features, target = match_sizes(*pair)
            mask = context.mask_at(*target.shape[-2:])
            out, fused = fuse(features, mask, fused)
            value = review_kd_loss([out], [target], mask=mask)
            terms[mine] = Term(value, count_images(mask))
        return terms


class AttentionFusion(nn.Module):
    """A stage of the student, joined with what was fused from the deeper ones.

    Its features are projected to ``width`` channels; two gates in 0…1, computed from both, weigh
    them at each position. A 3x3 convolution projects the sum to the teacher's channels.

    Args:
        in_channels: channels of the student's stage.
        width: channels in which stages are fused, the same for all.
        out_channels: channels of the teacher's stage.
        deepest: this is the deepest stage, which has no other to fuse with.
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
            mask: (B, h, w) bool, True where positions are valid; the others have no effect.
            deeper: (B, width, h', w'), the second result of the next deeper stage; None for the
                deepest.

        Returns:
            (B, out_channels, h, w), to be compared with the teacher, and (B, width, h, w), for the
            next shallower stage; both are 0 at invalid positions.
        """
        fused = self.reduce_norm(self.reduce(features), mask)
        if self.gates is not None and deeper is not None:
            deeper = F.interpolate(deeper, fused.shape[-2:], mode="nearest")
            deeper = deeper.masked_fill(~mask.unsqueeze(1), 0)
            own, other = self.gates(torch.cat([fused, deeper], dim=1)).sigmoid().split(1, dim=1)
            fused = fused * own + deeper * other
        return self.expand_norm(self.expand(fused), mask), fused
