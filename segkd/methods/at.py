"""Attention transfer: at each stage, the student matches the teacher's spatial attention map.

Zagoruyko, Komodakis: Paying More Attention to Attention. ICLR 2017, arXiv 1612.03928.

    L = Σ_taps mean over images of Σ_i (q_s − q_t)²,   q = Q / ‖Q‖₂ over the positions i
    Q = Σ_c |A_c|^p  or  max_c |A_c|^p

Taps: the last three stages by default; no adapter, since the maps have no channels.
The paper prints the norm ‖q_s − q_t‖₂, its public code uses the squared norm, which is followed
here: it has a gradient at equality. That code averages over positions as well, so its weights
(1e3 to 1e4) fit one resolution only. Some code omits the absolute value, which is wrong for odd p.
"""

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from segkd.methods.base import Context, Conversion, Weight
from segkd.methods.shared.tapped import TapListKeys, TapListMethod
from segkd.ops.masked import attention_map, count_images, image_mean, position_mask, unit_maps
from segkd.ops.resize import common_size, match_sizes
from segkd.structures import Batch, Outputs, Term


def at_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    over_channels: Literal["sum", "max"] = "sum",
    power: float = 2.0,
) -> Tensor:
    """Mean over images of the squared distance of two attention maps of norm 1.

    Args:
        student: features (B, C, h, w).
        teacher: features (B, C', h', w'); detached.
        mask: (B, h, w) bool at the smaller of both sizes, True where positions are valid; None:
            all. Images without any valid position are excluded from the mean.
        over_channels: ``sum`` or ``max`` of the absolute values.
        power: p, applied to the absolute values; 1 or more.

    Returns:
        A scalar between 0 and 2, float32 or wider; a differentiable zero if no position is valid.
    """
    maps = (
        attention_map(features, over_channels, power) for features in (student, teacher.detach())
    )
    student, teacher = match_sizes(*maps, mask=mask)
    mask = position_mask(student, mask)
    distance = (unit_maps(student, mask) - unit_maps(teacher, mask)).square()
    return image_mean(distance.sum(dim=(1, 2)), mask)


class ATConfig(TapListKeys):
    """Keys of the method ``at``."""

    weight: Weight = Field(0.3, description="factor of all terms; see docs/weights.md")
    taps: list[str] | None = Field(
        None, description="taps of the student; default: the last three stages"
    )
    over_channels: Literal["sum", "max"] = Field("sum", description="how channels are joined")
    power: float = Field(2.0, ge=1, le=8, description="p of |A|^p; with sum and 1: G_sum")


class AT(TapListMethod[ATConfig]):
    """Terms: one per tap of the student, each a mean over images."""

    name = "at"
    kind = "feature"
    paper = "Zagoruyko, Komodakis: Paying More Attention to Attention, arXiv 1612.03928"
    year = 2017
    published = "Cityscapes, PSPNet-R18: 69.10 → 72.37 (table 2 of CWD)"
    equation = "mean_images Σ_i (q_s − q_t)², q = Q / ‖Q‖₂, Q = Σ_c |A_c|^p or max_c |A_c|^p"
    cost = "two passes over the tapped features"
    default_taps = ("stage3", "stage4", "stage5")
    conversions: ClassVar = {
        "attention-transfer": Conversion(1000, {"h": -1, "w": -1}, "per stage, at its own size"),
        "RepDistiller, mdistiller": Conversion(1000, {"h": -1, "w": -1}, "per stage"),
        "CIRKD": Conversion(10000, {"h": -1, "w": -1}, "head"),
    }

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        terms = {}
        options: dict[str, Any] = self.config.model_dump(include={"over_channels", "power"})
        for tap, teacher_tap in self.pairs.items():
            features, target = student.tap(tap), teacher.tap(teacher_tap)
            mask = context.mask_at(*common_size(features, target))
            value = at_loss(features, target, mask=mask, **options)
            terms[tap] = Term(value, count_images(mask))
        return terms
