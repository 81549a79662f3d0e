"""PKD: matches features up to the scale and offset of each channel, by Pearson's correlation.

Cao, Zhang, Gao, Cheng, Cheng, Cheng: PKD: General Distillation Framework for Object Detectors via
Pearson Correlation Coefficient. NeurIPS 2022, arXiv 2207.02039.

    L = Σ_taps mean over channels of ½ mean (x_s − x_t)² = 1 − r,   x = (F − μ_c) / (σ_c + eps)
    μ_c, σ_c over the valid positions of all images of the global batch

Taps: the deepest stage and ``head`` by default, a 1x1 convolution where the channels differ; the
paper uses the pyramid levels of detectors, with equal channels.
Public code takes the unbiased deviation of the images on one device, here it is the biased one
of all images. No standardised map is stored: a few sums per channel give variance and covariance.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from segkd.methods.base import BuildContext, Context, Conversion, Weight
from segkd.methods.shared.tapped import TapListKeys, TapListMethod
from segkd.ops.masked import position_mask, require_equal_shapes
from segkd.ops.resize import common_size, match_sizes
from segkd.structures import Batch, Outputs, Term


def pkd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    eps: float = 1e-6,
    all_sum: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """Mean over channels of half the mean squared difference of standardised features.

    Args:
        student: features (B, C, h, w).
        teacher: features (B, C, h', w'); detached.
        mask: (B, h, w) bool at the smaller of both sizes, True where positions are valid; None:
            all.
        eps: added to the standard deviations.
        all_sum: sums over processes, and so does its backward; the loss is then the same on all.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no position is valid.

    Raises:
        ValueError: the channels differ.
    """
    student, teacher = match_sizes(student, teacher.detach(), mask=mask)
    require_equal_shapes(student, teacher)
    mask = position_mask(student, mask)
    count = all_sum(mask.sum(dtype=torch.float64)).clamp(min=1).to(student.dtype)
    student, teacher = (_centred(maps, mask, count, all_sum) for maps in (student, teacher))
    sums = [maps.sum(dim=(0, 2)) for maps in (student, teacher)]
    for a, b in ((student, student), (teacher, teacher), (student, teacher)):
        sums.append((a * b).sum(dim=(0, 2)))
    s, t, ss, tt, st = all_sum(torch.stack(sums)) / count
    var_s, var_t, covariance = ss - s * s, tt - t * t, st - s * t
    std_s, std_t = _sqrt(var_s) + eps, _sqrt(var_t) + eps
    distance = var_s / std_s**2 + var_t / std_t**2 - 2 * covariance / (std_s * std_t)
    return distance.mean().clamp(min=0) / 2


def _centred(
    maps: Tensor, mask: Tensor, count: Tensor, all_sum: Callable[[Tensor], Tensor]
) -> Tensor:
    """Maps minus each channel's mean: (B, C, N), zero at invalid positions.

    Second moments of these are exact where those of the maps themselves would cancel. They do
    not depend on the offset, so it needs no gradient.
    """
    hidden = ~mask.unsqueeze(1)
    mean = all_sum(maps.detach().masked_fill(hidden, 0).sum(dim=(0, 2, 3))) / count
    return (maps - mean.view(-1, 1, 1)).masked_fill(hidden, 0).flatten(2)


def _sqrt(values: Tensor) -> Tensor:
    """The square root, with gradient 0 instead of infinity at 0."""
    positive = values > 0
    return torch.where(positive, values, 1).sqrt().where(positive, 0)


class PKDConfig(TapListKeys):
    """Keys of the method ``pkd``."""

    weight: Weight = Field(1.0, description="factor of all terms; see docs/weights.md")
    taps: list[str] | None = Field(
        None, description="taps of the student; default: the deepest stage, and head"
    )


class PKD(TapListMethod[PKDConfig]):
    """Terms: one per tap of the student, the same values on all processes."""

    name = "pkd"
    kind = "feature"
    paper_weight = 10.0
    paper = "Cao et al.: PKD: General Distillation Framework for Object Detectors, arXiv 2207.02039"
    year = 2022
    equation = "mean_channels ½ mean (x_s − x_t)² = 1 − r, x = (F − μ_c) / (σ_c + eps)"
    cost = "a 1x1 convolution and three passes over the features"
    default_taps = ("stage5", "head")
    conversions: ClassVar = {
        "mmrazor": Conversion(10, note="per pyramid level of a RetinaNet"),
    }

    def build(self, spec: BuildContext) -> None:
        self.adapters = self.aligned(spec, gain=1.0)  # standardised afterwards

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        terms = {}
        for adapter, (tap, teacher_tap) in zip(self.adapters, self.pairs.items(), strict=True):
            features, target = adapter(student.tap(tap)), teacher.tap(teacher_tap)
            mask = context.mask_at(*common_size(features, target))
            terms[tap] = Term(pkd_loss(features, target, mask=mask, all_sum=context.all_sum))
        return terms
