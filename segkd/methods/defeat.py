"""DeFeat: features are regressed apart on objects and on background, each with its own weight.

Guo, Han, Wang, Wu, Chen, Xu, Xu: Distilling Object Detectors via Decoupled Features. CVPR 2021,
arXiv 2103.14475.

    L = Σ_{side: foreground, background} w_side · Σ_i u_i · mean_c (r(F_s) − F_t)² / Σ_i u_i
    i over the side's valid positions;  u = 1, or with ``regions`` 1 / area of i's class region

Taps: ``head`` by default; r is a 1x1 convolution if the channels differ. A position is foreground
if any pixel in its cell is, so thin lanes survive the stride; void pixels are on neither side.
The paper detects: its foreground is the boxes, r a 3x3 convolution per pyramid level, the sum is
halved, and the head's class scores are distilled on both sides as well (here: ``kd`` beside it).
Lanes are such a foreground. Where all is labelled, as in streets, the two sides mean little;
there ``regions`` lets each class of an image weigh the same within its side.
"""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from segkd.methods.base import BuildContext, Context, Conversion, MethodConfig, Weight
from segkd.methods.shared.foreground import ForegroundKeys, ForegroundMethod, Sides
from segkd.ops.masked import require_equal_shapes
from segkd.ops.resize import match_sizes
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
        teacher: features (B, C, h', w'); without gradient.
        foreground: (B, h, w) bool at the smaller of both sizes.
        mask: (B, h, w) bool, True where positions are valid; None: all.
        regions: (B, h, w) int64, ids from 0 at valid positions, e.g. labels: each region of an
            image then weighs the same within its side; None: each position does.
        foreground_weight, background_weight: w of both sides.

    Returns:
        A scalar, float32 or wider; a side without valid positions adds 0 with a graph.

    Raises:
        ValueError: the channels differ, or a mask has another shape.
    """
    student, teacher = match_sizes(student, teacher.detach(), mask=mask)
    sides = Sides.of_maps(student, foreground, mask, regions)
    terms = sides.terms(_distance(student, teacher, sides.mask))
    inside, outside = terms["foreground"].value, terms["background"].value
    return foreground_weight * inside + background_weight * outside


def _distance(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean over channels of the squared difference: (B, h, w), 0 at invalid positions."""
    require_equal_shapes(student, teacher)
    return (student - teacher).masked_fill(~mask.unsqueeze(1), 0).square().mean(dim=1)


class DeFeat(ForegroundMethod):
    name = "defeat"
    kind = "feature"
    paper = "Guo et al.: Distilling Object Detectors via Decoupled Features, arXiv 2103.14475"
    year = 2021
    equation = "Σ_{foreground, background} w · mean_{its positions, channels} (r(F_s) − F_t)²"
    cost = "a 1x1 convolution and one pass over the features"
    default_weights: ClassVar = {"foreground": 1.5, "background": 6.0}
    conversions: ClassVar = {
        "DeFeat VOC foreground": Conversion(1.5, note="3, halved; `weights.foreground`"),
        "DeFeat VOC background": Conversion(6, note="12, halved; `weights.background`"),
    }

    class Config(ForegroundKeys, MethodConfig):
        weight: Weight = Field(0.22, description="factor of all terms; see docs/weights.md")

    def build(self, spec: BuildContext) -> None:
        super().build(spec)
        self.regressor = self.aligned(spec)

    def loss(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, context: Context
    ) -> dict[str, Term]:
        features, target = self.scaled(student, teacher, context)
        features, target = match_sizes(self.regressor(features), target)
        sides = self.sides(batch, context, features.shape[-2:])
        return sides.terms(_distance(features, target, sides.mask))
