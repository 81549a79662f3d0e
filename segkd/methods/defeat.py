"""DeFeat: features are regressed separately on objects and on background, each with a weight.

Guo, Han, Wang, Wu, Chen, Xu, Xu: Distilling Object Detectors via Decoupled Features. CVPR 2021,
arXiv 2103.14475.

    L = Σ_{side: foreground, background} w_side · Σ_i u_i · mean_c (r(F_s) − F_t)² / Σ_i u_i
    i over the side's valid positions;  u = 1, or with ``regions`` 1 / area of i's class region

Taps: ``head`` by default; r is a 1x1 convolution if the channels differ. A position is foreground
if any pixel in its cell is, so thin lanes survive the stride; void pixels belong to neither side.
The paper is on detection: its foreground is the boxes, r a 3x3 convolution per pyramid level, the
sum is halved, and the head's class scores are distilled on both sides as well (here: add ``kd``).
Lanes are such a foreground. Where every pixel is labelled, as in street scenes, the two sides mean
little; there ``regions`` gives each class of an image the same weight within its side.
"""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from segkd.methods.base import Context, Conversion, Weight
from segkd.methods.shared.foreground import ForegroundKeys, ForegroundMethod, Sides
from segkd.ops.resize import match_sizes
from segkd.ops.squared_distance import squared_distance
from segkd.structures import Batch, Outputs, Term


def defeat_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    foreground: Tensor,
    mask: Tensor | None = None,
    regions: Tensor | None = None,
    foreground_weight: float = 1.5,
    background_weight: float = 6.0,
) -> Tensor:
    """Weighted sum of the mean squared differences on foreground and on background.

    Args:
        student: features (B, C, h, w), in the teacher's channels.
        teacher: features (B, C, h', w'); detached.
        foreground: (B, h, w) bool at the smaller of both sizes.
        mask: (B, h, w) bool, True where positions are valid; None: all.
        regions: (B, h, w) int64, ids from 0 at valid positions, e.g. labels: each region of an
            image then weighs the same within its side; None: each position does.
        foreground_weight, background_weight: w of both sides.

    Returns:
        A scalar, float32 or wider; a side without valid positions adds a differentiable zero.

    Raises:
        ValueError: the channels differ, or a mask has another shape.
    """
    student, teacher = match_sizes(student, teacher.detach())
    sides = Sides.of_maps(student, foreground, mask, regions)
    terms = sides.terms(_distance(student, teacher, sides.mask))
    inside, outside = terms["foreground"].value, terms["background"].value
    return foreground_weight * inside + background_weight * outside


def _distance(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean over channels of the squared difference: (B, h, w), 0 at invalid positions."""
    distance = squared_distance(student, teacher).masked_fill(~mask, 0)
    return distance / student.shape[1]


class DeFeatConfig(ForegroundKeys):
    """Keys of the method ``defeat``."""

    weight: Weight = Field(0.22, description="factor of all terms; see docs/weights.md")


class DeFeat(ForegroundMethod[DeFeatConfig]):
    """Terms ``foreground`` and ``background``, means over positions or regions."""

    name = "defeat"
    kind = "feature"
    paper = "Guo et al.: Distilling Object Detectors via Decoupled Features, arXiv 2103.14475"
    year = 2021
    equation = "Σ_{foreground, background} w · mean_{its positions, channels} (r(F_s) − F_t)²"
    cost = "a 1x1 convolution and one pass over the features"
    default_weights: Mapping[str, float] = {"foreground": 1.5, "background": 6.0}
    conversions: ClassVar = {
        "DeFeat VOC foreground": Conversion(1.5, note="3, halved; `weights.foreground`"),
        "DeFeat VOC background": Conversion(6, note="12, halved; `weights.background`"),
    }

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        features, target, sides = self.regressed(student, teacher, batch, context)
        return sides.terms(_distance(features, target, sides.mask))
