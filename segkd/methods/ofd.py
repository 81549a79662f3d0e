"""OFD: regresses the teacher's values before the activation, where the activation passes them.

Heo, Kim, Yun, Park, Kwak, Choi: A Comprehensive Overhaul of Feature Distillation. ICCV 2019,
arXiv 1904.01866.

    L = Σ_taps mean over valid positions and channels of [s > t or t > 0] · (s − t)²
    s = r(F_s),   t = max(F_t, m_c),   m_c = E[x | x < 0] for x ~ N(β_c, γ_c²)

Taps: the deepest stage by default, before its activation (``stage5:pre``), or the output itself if
it has no activation, as in transformers. r is a 1x1 convolution. β and γ are those of the
teacher's batch norm there. For a teacher without one (layer norm, none) the margin is the mean of
a channel's negative values in the global batch, with a warning.
Public code has a batch norm in r, runs the teacher on batch statistics, trains only r for an
epoch (here a run with ``train: [methods.ofd.*]``), and sums over channels and positions.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from segkd.methods.base import BuildContext, Context, Conversion, Weight
from segkd.methods.shared.feature_scale import FeatureScale, ScaleKeys
from segkd.methods.shared.tapped import TapListKeys, TapListMethod
from segkd.ops.masked import position_mask, require_equal_shapes
from segkd.ops.resize import common_size, match_sizes
from segkd.ops.squared_distance import squared_distance
from segkd.structures import Batch, Outputs, Term


def ofd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    margin: Tensor | None = None,
    mask: Tensor | None = None,
    all_sum: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """Mean over valid positions and channels of the partial squared distance.

    Args:
        student: values before the activation (B, C, h, w), in the teacher's channels.
        teacher: the same, (B, C, h', w'); detached.
        margin: (C,), lower bound of the target, see ``expected_negative``; None: the mean of a
            channel's negative values at valid positions.
        mask: (B, h, w) bool at the smaller of both sizes, True where positions are valid; None:
            all.
        all_sum: sums over processes; used if ``margin`` is None.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no position is valid.

    Raises:
        ValueError: the channels differ.
    """
    student, teacher = match_sizes(student, teacher.detach())
    require_equal_shapes(student, teacher)
    mask = position_mask(student, mask)
    if margin is None:
        margin = _mean_negative(teacher, mask, all_sum)
    total = squared_distance(student, teacher, margin=margin).masked_fill(~mask, 0).sum()
    return total / (mask.sum().clamp(min=1) * student.shape[1])


def expected_negative(mean: Tensor, std: Tensor) -> Tensor:
    """E[x | x < 0] for x ~ N(mean, std²), or −3·std if P(x < 0) is below 0.001.

    Args:
        mean, std: (C,).

    Returns:
        (C,).
    """
    std = std.abs().clamp(min=torch.finfo(std.dtype).tiny)
    below = torch.special.ndtr(-mean / std)
    density = torch.exp(-0.5 * (mean / std).square()) / (2 * torch.pi) ** 0.5
    return torch.where(below > 1e-3, mean - std * density / below.clamp(min=1e-3), -3 * std)


def _mean_negative(maps: Tensor, mask: Tensor, all_sum: Callable[[Tensor], Tensor]) -> Tensor:
    negative = maps.clamp(max=0).masked_fill(~mask.unsqueeze(1), 0)
    sums = negative.sum(dim=(0, 2, 3)), (negative < 0).sum(dim=(0, 2, 3)).to(maps.dtype)
    total, count = all_sum(torch.stack(sums))
    return total / count.clamp(min=1)


class OFDConfig(TapListKeys, ScaleKeys):
    """Keys of the method ``ofd``."""

    weight: Weight = Field(1.0, description="factor of all terms; see docs/weights.md")
    taps: list[str] | None = Field(
        None,
        description="taps of the student; default: the deepest stage, before its activation",
    )


class OFD(TapListMethod[OFDConfig]):
    """Terms: one per tap of the student, each a mean over valid positions."""

    name = "ofd"
    kind = "feature"
    paper_weight = 10.0
    paper = "Heo et al.: A Comprehensive Overhaul of Feature Distillation, arXiv 1904.01866"
    year = 2019
    published = "VOC, DeepLabV3+ R18: 72.07 → 73.98 (its README)"
    equation = "mean [s > t or t > 0] · (s − t)², s = r(F_s), t = max(F_t, m), before activations"
    cost = "a 1x1 convolution and one pass over the features"
    default_taps = ("stage5:pre",)
    conversions: ClassVar = {
        "official stage2": Conversion(1e-5 / 8, {"C_t": 1, "h": 1, "w": 1}),
        "official stage3": Conversion(1e-5 / 4, {"C_t": 1, "h": 1, "w": 1}),
        "official stage4": Conversion(1e-5 / 2, {"C_t": 1, "h": 1, "w": 1}),
        "official stage5": Conversion(1e-5, {"C_t": 1, "h": 1, "w": 1}),
        "mmrazor": Conversion(1e-3, {"C_t": 1, "h": 1, "w": 1}),
    }

    def build(self, spec: BuildContext) -> None:
        self.connectors = self.aligned(spec, always=True)
        for number, teacher_tap in enumerate(self.pairs.values()):
            margin = _margin(spec.norm_before(teacher_tap))
            self.register_buffer(f"margin{number}", margin, persistent=False)

    def notes(self, total_steps: int, images: int) -> list[str]:
        """A warning for each tap of a teacher without a batch norm."""
        return [
            f"WARNING: the teacher has no batch norm before '{tap}'; the margin is the mean of the "
            "negative values of each batch"
            for number, tap in enumerate(self.pairs.values())
            if getattr(self, f"margin{number}") is None
        ]

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        terms = {}
        scaled = zip(self.pairs, self.scaled(student, teacher, context), strict=True)
        for number, (tap, (features, target)) in enumerate(scaled):
            features = self.connectors[number](features)
            scale = self.feature_scales[number]
            assert isinstance(scale, FeatureScale)
            margin = scale.same(getattr(self, f"margin{number}"))
            mask = context.mask_at(*common_size(features, target))
            value = ofd_loss(features, target, margin=margin, mask=mask, all_sum=context.all_sum)
            terms[tap] = Term(value, mask.sum(dtype=torch.float64))
        return terms


def _margin(norm: nn.Module | None) -> Tensor | None:
    """The margin (C,) of the teacher's batch norm; None without one."""
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return None
    if not norm.affine:
        return expected_negative(torch.zeros(norm.num_features), torch.ones(norm.num_features))
    mean, std = (value.detach().double() for value in (norm.bias, norm.weight))
    return expected_negative(mean, std).float()
