"""FSP: matches the teacher's flow from one stage to the next, the products of their channels.

Yim, Joo, Bae, Kim: A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and
Transfer Learning. CVPR 2017, doi 10.1109/CVPR.2017.754.

    L = Σ_pairs mean over images and entries of (G_s − G_t)²
    G_ij = mean over valid positions of F1_i · F2_j,   F1, F2: two stages at one size

Taps: the last three stages by default, each with the next. The paper requires equal channels;
1x1 convolutions on the student's stages where they differ are our extension. The teacher's stages
have none, since both sides could otherwise collapse to zero.
The paper max-pools the larger stage, public code and ours average it; the paper sums over entries,
and trains with FSP first and with labels afterwards: two runs of a recipe, see
``streets/fitnets_two_phase``.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from segkd.errors import ConfigError
from segkd.methods.base import BuildContext, Context, Conversion, Weight
from segkd.methods.shared.feature_scale import ScaleKeys
from segkd.methods.shared.tapped import TapListKeys, TapListMethod
from segkd.modules.adapter import start_gain
from segkd.ops.masked import count_images, image_mean, position_mask, require_equal_shapes
from segkd.ops.precision import full_precision
from segkd.ops.resize import common_size, match_sizes
from segkd.structures import Batch, Outputs, Term


def fsp_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], *, mask: Tensor | None = None
) -> Tensor:
    """Sum over pairs of neighbouring stages of the mean squared difference of FSP matrices.

    Args:
        student: two stages or more, each (B, C_i, h_i, w_i).
        teacher: as many, each (B, C_i, h'_i, w'_i); detached.
        mask: (B, h, w) bool at any size, True where positions are valid, taken at the smallest
            size of a pair by nearest neighbour; None: all. Images without any valid position are
            excluded from the mean.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no position is valid.

    Raises:
        ValueError: unequal numbers of stages, fewer than two, or different channels.
    """
    if len(student) != len(teacher) or len(student) < 2:
        raise ValueError(
            f"got {len(student)} stages of the student and {len(teacher)} of the teacher, expected "
            "two or more, and the same number of each"
        )
    teacher = [stage.detach() for stage in teacher]
    pairs = zip(pairwise(student), pairwise(teacher), strict=True)
    return torch.stack([_pair_loss(*pair, mask) for pair in pairs]).sum()


def _pair_loss(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], mask: Tensor | None
) -> Tensor:
    size = common_size(*student, *teacher)
    if mask is not None and mask.shape[-2:] != size:
        mask = F.interpolate(mask.unsqueeze(1).float(), size, mode="nearest").squeeze(1).bool()
    s1, s2, t1, t2 = match_sizes(*student, *teacher)
    require_equal_shapes(s1, t1)
    require_equal_shapes(s2, t2)
    mask = position_mask(s1, mask)
    difference = _flow(s1, s2, mask) - _flow(t1, t2, mask)
    return image_mean(difference.square().mean(dim=(1, 2)), mask)


def _flow(first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
    """(B, C1, C2): mean over valid positions of the products of two stages' channels."""
    hidden = ~mask.unsqueeze(1)
    first, second = (stage.masked_fill(hidden, 0).flatten(2) for stage in (first, second))
    count = mask.flatten(1).sum(1).clamp(min=1).view(-1, 1, 1)
    with full_precision(first.device):
        return torch.bmm(first, second.transpose(1, 2)) / count


class FSPConfig(TapListKeys, ScaleKeys):
    """Keys of the method ``fsp``."""

    weight: Weight = Field(2.7, description="factor of all terms; see docs/weights.md")
    taps: list[str] | None = Field(
        None, description="stages of the student, each with the next; default: the last three"
    )


class FSP(TapListMethod[FSPConfig]):
    """Terms: one per pair of neighbouring stages, each a mean over images."""

    name = "fsp"
    kind = "relation"
    paper_weight = 50.0
    paper = "Yim et al.: A Gift from Knowledge Distillation, CVPR 2017"
    year = 2017
    equation = "mean_{images, i, j} (G_s − G_t)²_ij, G_ij = mean_positions F1_i · F2_j"
    cost = "one product of two stages' channels over all positions: 2·N·C1·C2 operations per side"
    default_taps = ("stage3", "stage4", "stage5")
    least_taps = 2
    conversions: ClassVar = {
        "RepDistiller": Conversion(50, note="per pair"),
    }

    def __init__(self, config: FSPConfig | None = None) -> None:
        super().__init__(config)
        if len(self.pairs) < 2:
            raise ConfigError(
                f"method 'fsp' compares neighbouring stages: got taps {self.config.taps}, add one"
            )

    def build(self, spec: BuildContext) -> None:
        # Features are multiplied in pairs: gains of ``start_gain()`` would be squared.
        self.adapters = self.aligned(spec, gain=start_gain() ** 0.5)

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        taps = zip(self.pairs, self.adapters, self.scaled(student, teacher, context), strict=True)
        stages = [(tap, adapt(features), target) for tap, adapt, (features, target) in taps]
        terms = {}
        for (first, s1, t1), (second, s2, t2) in pairwise(stages):
            mask = context.mask_at(*common_size(s1, s2, t1, t2))
            value = fsp_loss([s1, s2], [t1, t2], mask=mask)
            count = count_images(mask)
            terms[f"{first}_{second}"] = Term(value, count)
        return terms
