"""FitNets: a hidden layer of the student regresses one of the teacher.

Romero, Ballas, Kahou, Chassang, Gatta, Bengio: FitNets: Hints for Thin Deep Nets. ICLR 2015,
arXiv 1412.6550.

    L = mean over valid positions and channels of (r(F_s) − F_t)²

Taps: one of each network, ``head`` by default; r is a 1x1 convolution if the channels differ.
The paper has ½ of the sum, and two phases: first the student up to its guided layer learns from
the hint only, then the whole student from labels and soft targets. Public segmentation code
takes the mean and adds it to the other losses in one phase, as one entry does here; the two
phases are the recipe ``streets/fitnets_two_phase``.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from segkd.methods.base import BuildContext, Context, Conversion, Weight
from segkd.methods.shared.feature_scale import ScaleKeys
from segkd.methods.shared.tapped import TapKeys, TapMethod
from segkd.ops.masked import position_mask
from segkd.ops.resize import common_size, match_sizes
from segkd.ops.squared_distance import masked_mse
from segkd.structures import Batch, Outputs, Term


def fitnets_loss(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of two feature maps over valid positions and channels.

    Args:
        student: features (B, C, h, w), regressed to the teacher's channels.
        teacher: features (B, C, h', w'); detached.
        mask: (B, h, w) bool at the smaller of both sizes, True where positions are valid; None:
            all.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no position is valid.

    Raises:
        ValueError: the channels differ.
    """
    student, teacher = match_sizes(student, teacher.detach())
    return masked_mse(student, teacher, position_mask(student, mask))


class FitNetsConfig(TapKeys, ScaleKeys):
    """Keys of the method ``fitnets``."""

    weight: Weight = Field(1.8, description="factor of all terms; see docs/weights.md")


class FitNets(TapMethod[FitNetsConfig]):
    """Term ``fitnets``, a mean over valid positions."""

    name = "fitnets"
    kind = "feature"
    paper_weight = 10.0
    paper = "Romero et al.: FitNets: Hints for Thin Deep Nets, arXiv 1412.6550"
    year = 2015
    equation = "mean_{positions, channels} (r(F_s) − F_t)²"
    cost = "a 1x1 convolution and one pass over the features"
    conversions: ClassVar = {
        "paper": Conversion(0.5, {"C_t": 1, "h": 1, "w": 1}, "half the sum over one image"),
        "RepDistiller, mdistiller": Conversion(100),
        "CIRKD": Conversion(10),
        "CIRKD v2": Conversion(1, note="8 of its scripts; 11 have 10"),
    }

    def __init__(self, config: FitNetsConfig | None = None) -> None:
        super().__init__(config)
        self.regressor: nn.Module = nn.Identity()

    def build(self, spec: BuildContext) -> None:
        self.regressor = self.aligned(spec)

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        features, hint = self.scaled(student, teacher, context)
        guided = self.regressor(features)
        mask = context.mask_at(*common_size(guided, hint))
        value = fitnets_loss(guided, hint, mask=mask)
        return {"fitnets": Term(value, mask.sum(dtype=torch.float64))}
