"""KD-SVD: matches how the principal direction of features changes from stage to stage.

Lee, Kim, Song: Self-supervised Knowledge Distillation Using Singular Value Decomposition. ECCV
2018, arXiv 1807.06819.

    L = Σ_pairs mean over images of Σ_ij (R_s − R_t)²_ij
    R_ij = exp(−(v_i − u_j)²/8),   v, u: first right singular vectors of two neighbouring stages

Rows of the matrix of a stage are its valid positions, columns its channels. Taps: the last three
stages by default, each with the next; the paper requires equal channels, 1x1 convolutions on the
student's stages where they differ are our extension.
As in public code, the student's direction is the one of its first four (``candidates``) that is
most similar to the teacher's, with the sign that makes it so. There, vectors are multiplied by
normalised singular values, which changes nothing for a single one, and decomposition and gradient
are exact; here both are of a power iteration, see ``segkd.ops.principal``. A port to PyTorch mixes
the images of a batch where maps are not square.
The authors sum over a batch of 128 and clip the gradient of each weight to the norm of that of the
task loss; ``weight: {auto: 0.3}`` balances both in the same spirit.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from segkd.errors import ConfigError
from segkd.methods.base import BuildContext, Context, Conversion, Weight, nearest
from segkd.methods.shared.tapped import TapListKeys, TapListMethod
from segkd.ops.masked import position_mask, require_equal_shapes
from segkd.ops.precision import full_precision
from segkd.ops.principal import principal_directions
from segkd.ops.resize import common_size, match_sizes
from segkd.structures import Batch, Outputs, Term

_CANDIDATES = 4


def kd_svd_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    *,
    mask: Tensor | None = None,
    candidates: int = _CANDIDATES,
) -> Tensor:
    """Sum over pairs of neighbouring stages of the squared distance of their RBF matrices.

    Args:
        student: two stages or more, each (B, C_i, h_i, w_i).
        teacher: as many, each (B, C_i, h'_i, w'_i); detached.
        mask: (B, h, w) bool at any size, True where positions are valid, taken at the smaller size
            of each stage by nearest neighbour; None: all. Images without any valid position at
            one of two stages are excluded from the mean.
        candidates: number of the student's directions, of which the one most similar to the
            teacher's is taken.

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
    terms = _terms(student, teacher, mask, candidates)
    return torch.stack([term.value for term in terms]).sum()


def _terms(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    mask: Tensor | None,
    candidates: int,
) -> list[Term]:
    """A Term for each pair of neighbouring stages, arguments as of ``kd_svd_loss``."""
    stages = [_directions(*pair, mask, candidates) for pair in zip(student, teacher, strict=True)]
    terms = []
    for (s1, t1, valid1), (s2, t2, valid2) in pairwise(stages):
        valid = valid1 & valid2
        distance = (_relation(s2, s1) - _relation(t2, t1)).square().sum(dim=(1, 2))
        total = distance.masked_fill(~valid, 0).sum()
        terms.append(Term(total / valid.sum().clamp(min=1), valid.sum(dtype=torch.float64)))
    return terms


def _directions(
    student: Tensor, teacher: Tensor, mask: Tensor | None, candidates: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of one stage the student's direction (B, C) and the teacher's; (B,) bool: image is valid."""
    size = common_size(student, teacher)
    mask = mask if mask is None else nearest(mask, *size)
    student, teacher = match_sizes(student, teacher.detach(), mask=mask)
    require_equal_shapes(student, teacher)
    mask = position_mask(student, mask)
    several = principal_directions(student, mask, candidates)
    target = principal_directions(teacher, mask)
    with full_precision(student.device):
        cosine = (several.detach().mT @ target).squeeze(2)
        nearer = cosine.abs().argmax(dim=1, keepdim=True)
        sign = torch.where(cosine.gather(1, nearer) < 0, -1.0, 1.0).to(several.dtype)
    chosen = several.gather(2, nearer.unsqueeze(1).expand(-1, several.shape[1], 1)).squeeze(2)
    return chosen * sign, target.squeeze(2), mask.flatten(1).any(dim=1)


def _relation(late: Tensor, early: Tensor) -> Tensor:
    """R − 1 of two stages' directions: (B, C_2) and (B, C_1) to (B, C_2, C_1).

    Entries of unit vectors are so small that R is nearly 1; without the 1 no digit is lost.
    """
    return (-(late.unsqueeze(2) - early.unsqueeze(1)).square() / 8).expm1()


class KDSVDConfig(TapListKeys):
    """Keys of the method ``kd_svd``."""

    weight: Weight = Field(2.5, description="factor of all terms; see docs/weights.md")
    taps: list[str] | None = Field(
        None, description="stages of the student, each with the next; default: the last three"
    )
    candidates: PositiveInt = Field(
        _CANDIDATES, description="directions of the student, of which the most similar is taken"
    )


class KDSVD(TapListMethod[KDSVDConfig]):
    """Terms: one per pair of neighbouring stages, each a mean over images."""

    name = "kd_svd"
    kind = "relation"
    paper_weight = 128.0
    paper = "Lee et al.: Self-supervised Knowledge Distillation Using SVD, arXiv 1807.06819"
    year = 2018
    equation = (
        "mean_images Σ_ij (R_s − R_t)²_ij, R_ij = exp(−(v_i − u_j)²/8), "
        "v, u: first right singular vectors of two neighbouring stages"
    )
    cost = "a C x C product over all positions per stage and side, and maps C1 x C2 per pair"
    default_taps = ("stage3", "stage4", "stage5")
    least_taps = 2
    exempt: ClassVar = {
        "doubled_channels": "entries of unit vectors are halved, and exp(−d²/8) is not quite linear"
    }
    conversions: ClassVar = {
        "KD_methods_with_TF": Conversion(1, {"N": 1}, "N 128; clipped to the task's gradient"),
        "RepDistiller": Conversion(1, note="sum over pairs of stages"),
    }

    def __init__(self, config: KDSVDConfig | None = None) -> None:
        super().__init__(config)
        if len(self.pairs) < 2:
            raise ConfigError(
                f"method 'kd_svd' compares neighbouring stages: got taps {self.config.taps}, add "
                "one"
            )

    def build(self, spec: BuildContext) -> None:
        # Directions do not depend on the gain; layers of a small one would change too fast.
        self.adapters = self.aligned(spec, gain=1.0)

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        features = [
            adapt(student.tap(tap)) for tap, adapt in zip(self.pairs, self.adapters, strict=True)
        ]
        targets = [teacher.tap(tap) for tap in self.pairs.values()]
        mask = context.mask_at(*batch.not_padding.shape[-2:])
        terms = _terms(features, targets, mask, self.config.candidates)
        names = [f"{first}_{second}" for first, second in pairwise(self.pairs)]
        return dict(zip(names, terms, strict=True))
