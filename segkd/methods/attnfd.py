"""AttnFD: matches features that channel and spatial attention have weighed.

Mansourian, Jalali, Ahmadi, Kasaei: Attention-guided Feature Distillation for Semantic Segmentation.
2024, arXiv 2403.05451.

    L = Σ_taps mean over images of ‖ŝ − t̂‖²,   x̂ = x / ‖x‖₂ over all channels and positions
    s = norm(c(A_s(F_s))),   t = A_t(F_t),   c: 1x1
    A(F) = F' · σ(b(mean_c F', max_c F')),   F' = F · σ(m(mean_i F) + m(max_i F))

Taps: the deepest stage and ``head`` by default; the paper's are the last stage, the ASPP and the
last layer before the classifier. A is the Convolutional Block Attention Module (Woo, Park, Lee,
Kweon: CBAM, ECCV 2018, arXiv 1807.06521): m is an MLP, b a 7x7 convolution with a normalisation.

The teacher's attention has no parameters: m is the identity and b the sum, as in a variant of the
public code. Learned ones could lower the loss without the student, by switching off what it does
not have. The public code's own runs build the trained form into both networks, but no optimiser
has those of the teacher (nor the student's MLPs); what the paper intends is not known here. With
features in units of the teacher's, the teacher's gates are near 1 for active channels and
positions, and 0.5 for silent ones.
The public code divides by the norm of the whole batch, so that an image with large features counts
more, and the loss depends on the batch size; here it is the norm of each image. Its batch
normalisations are group normalisations here, over the valid positions of an image.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from segkd.methods.base import BuildContext, Context, Conversion, Weight
from segkd.methods.shared.feature_scale import ScaleKeys
from segkd.methods.shared.tapped import TapListKeys, TapListMethod
from segkd.modules.adapter import channel_adapter
from segkd.modules.masked_norm import MaskedGroupNorm
from segkd.ops.masked import count_images, image_mean, position_mask, require_equal_shapes
from segkd.ops.nodes import raised, unit_rows
from segkd.ops.resize import match_sizes
from segkd.structures import Batch, Outputs, Term


def attnfd_loss(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Mean over images of the squared distance of two maps of norm 1; from 0 to 4.

    Args:
        student: features (B, C, h, w), weighed by attention and aligned to the teacher's channels.
        teacher: features (B, C, h', w'), weighed by attention; detached.
        mask: (B, h, w) bool at the smaller of both sizes, True where positions are valid; None:
            all. Images without any valid position are excluded from the mean.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no position is valid.

    Raises:
        ValueError: the channels differ.
    """
    student, teacher = match_sizes(student, teacher.detach(), mask=mask)
    require_equal_shapes(student, teacher)
    mask = position_mask(student, mask)
    student, teacher = (
        unit_rows(maps.masked_fill(~mask.unsqueeze(1), 0).flatten(1)) for maps in (student, teacher)
    )
    return image_mean((student - teacher).square().sum(dim=1), mask)


def attend(
    maps: Tensor,
    mask: Tensor,
    *,
    channel: Callable[[Tensor], Tensor] = lambda pooled: pooled,
    spatial: Callable[[Tensor], Tensor] = lambda pooled: pooled.sum(dim=1, keepdim=True),
) -> Tensor:
    """Weighs channels, then positions, by gates in 0…1 that are computed from their mean and max.

    Args:
        maps: (B, C, h, w).
        mask: (B, h, w) bool, True where positions are valid; the others have no effect.
        channel: m, (B, C) -> (B, C), applied to means and to maxima over the positions; by default
            it has no parameters, nor has ``spatial``.
        spatial: b, (B, 2, h, w) -> (B, 1, h, w), applied to mean and maximum over the channels,
            which are 0 at invalid positions.

    Returns:
        (B, C, h, w), float32 or wider, 0 at invalid positions.
    """
    hidden = ~mask.unsqueeze(1)
    maps = raised(maps).masked_fill(hidden, 0)
    count = mask.sum(dim=(1, 2)).clamp(min=1).unsqueeze(1)
    mean = maps.sum(dim=(2, 3)) / count
    empty = ~mask.flatten(1).any(dim=1, keepdim=True)
    largest = maps.masked_fill(hidden, -torch.inf).amax(dim=(2, 3)).masked_fill(empty, 0)
    gate = raised(channel(mean) + channel(largest)).sigmoid()
    maps = maps * gate[:, :, None, None]
    pooled = torch.stack([maps.mean(dim=1), maps.amax(dim=1)], dim=1)
    return maps * raised(spatial(pooled)).sigmoid()


class AttnFDConfig(TapListKeys, ScaleKeys):
    """Keys of the method ``attnfd``."""

    weight: Weight = Field(0.4, description="factor of all terms; see docs/weights.md")
    taps: list[str] | None = Field(
        None, description="taps of the student; default: the deepest stage, and head"
    )
    reduction: PositiveInt = Field(
        16, description="channels over hidden channels of the student's channel attention"
    )


class AttnFD(TapListMethod[AttnFDConfig]):
    """Terms: one per tap of the student, each a mean over images."""

    name = "attnfd"
    kind = "feature"
    paper_weight = 2 / 6  # of batches of 6
    scale_free = False
    paper = "Mansourian et al.: Attention-guided Feature Distillation, arXiv 2403.05451"
    year = 2024
    published = "VOC, DeepLabV3+ R18: 67.50 → 73.09 (its README)"
    equation = (
        "Σ_taps mean_images ‖ŝ − t̂‖², x̂ = x / ‖x‖₂ over an image, of features weighed by channel "
        "and spatial attention"
    )
    cost = "a 1x1 convolution and about ten passes over the features of each tap"
    default_taps = ("stage5", "head")
    conversions: ClassVar = {
        "AttnFD": Conversion(2, {"N": -1}, "equal where all images of a batch have one norm"),
    }

    def build(self, spec: BuildContext) -> None:
        channels = [spec.student[mine].channels for mine in self.pairs]
        self.attentions = nn.ModuleList(
            BlockAttention(number, self.config.reduction) for number in channels
        )
        self.connectors, self.norms = nn.ModuleList(), nn.ModuleList()
        for number, theirs in zip(channels, self.pairs.values(), strict=True):
            target = spec.teacher[theirs].channels
            self.connectors.append(channel_adapter(number, target, always=True, gain=1.0))
            self.norms.append(MaskedGroupNorm(target))

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        terms = {}
        parts = zip(self.attentions, self.connectors, self.norms, strict=True)
        pairs = zip(self.pairs, self.scaled(student, teacher, context), parts, strict=True)
        for tap, pair, (attention, connector, norm) in pairs:
            features, target = match_sizes(*pair)
            mask = context.mask_at(*target.shape[-2:])
            features = norm(connector(attention(features, mask)), mask)
            value = attnfd_loss(features, attend(target, mask), mask=mask)
            terms[tap] = Term(value, count_images(mask))
        return terms


class BlockAttention(nn.Module):
    """Learned channel and spatial attention (CBAM): ``attend`` with an MLP and a convolution.

    Args:
        channels: of the maps.
        reduction: channels over hidden channels of the MLP.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        inner = max(4, channels // reduction)
        self.mlp = nn.Sequential(nn.Linear(channels, inner), nn.ReLU(), nn.Linear(inner, channels))
        self.spatial = nn.Conv2d(2, 1, kernel_size=7, padding=3, bias=False)
        self.norm = MaskedGroupNorm(1)

    def forward(self, maps: Tensor, mask: Tensor) -> Tensor:
        """Weighs channels, then positions.

        Args:
            maps: (B, channels, h, w).
            mask: (B, h, w) bool, True where positions are valid; the others have no effect.

        Returns:
            (B, channels, h, w), float32 or wider, 0 at invalid positions.
        """

        def spatial(pooled: Tensor) -> Tensor:
            gates: Tensor = self.norm(self.spatial(pooled), mask)
            return gates

        return attend(maps, mask, channel=self.mlp, spatial=spatial)
