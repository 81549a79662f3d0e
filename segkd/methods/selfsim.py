"""Self-similarity: positions of an image resemble each other as they do for the teacher.

The local term of LightlyTrain's third distillation (its public code, 2025; there is no paper). It
is the mini-batch term of CIRKD (Yang et al., CVPR 2022, arXiv 2204.06986; see `cirkd`) without
pairs of images, at another temperature.

    L = mean over valid positions i of Σ_j p_t log(p_t / p_s),   p = softmax_j(f_i · f_j / T)

for the valid positions j of the image of i. All vectors have length 1, and a position is a key of
its own row as well. Invalid positions are neither rows nor keys. There are no labels, no classes
and no layers: channels of student and teacher may differ, and only an image's own positions are
compared, so that batches of one image are as good as others. So it suits a teacher of features
alone, and images of any kind.

Taps: the deepest stage by default. A row has as many entries as the map has positions, N; rows are
streamed, so the cost of N² products is one of time, not of memory. At 64x128 positions it would be
four steps of a small student, so larger maps than ``positions`` are averaged over windows first,
which is ours: the public code has the few tokens of a ViT.
"""

from typing import ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from segkd.methods.base import Context, Conversion, Weight
from segkd.methods.shared.tapped import TapListKeys, TapListMethod
from segkd.ops.gram import limited_maps
from segkd.ops.masked import position_mask
from segkd.ops.resize import common_size, match_sizes
from segkd.ops.similarity_kl import similarity_kl, unit_nodes
from segkd.ops.symmetric_kl import is_worthwhile, symmetric_kl
from segkd.structures import Batch, Outputs, Term


def selfsim_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float = 0.07,
    positions: int | None = None,
) -> Tensor:
    """Mean over valid positions of KL(teacher ‖ student) over the positions of the same image.

    Args:
        student: features (B, C_s, h, w).
        teacher: features (B, C_t, h', w'); detached.
        mask: (B, h, w) bool at the smaller of both sizes, True where positions are valid; None:
            all. Invalid positions are neither rows nor columns.
        temperature: T of both softmaxes of cosines.
        positions: largest number of an image; square windows of larger maps are averaged over
            their valid positions. None: as many as there are.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no position is valid.

    Raises:
        ValueError: the mask has another shape.
    """
    student, teacher = match_sizes(student, teacher.detach(), mask=mask)
    keep, (student, teacher) = limited_maps(
        position_mask(student, mask), positions, student, teacher
    )
    keep = keep.flatten(1)
    mine, theirs = unit_nodes(student), unit_nodes(teacher)
    count = keep.sum().clamp(min=1)
    if is_worthwhile(keep.shape[1], temperature):
        return symmetric_kl(mine, theirs, keep, temperature, across=False) / count
    total = mine.new_zeros(())
    for own, other, valid in zip(mine, theirs, keep, strict=True):
        keys = own[None], other[None]
        total = total + similarity_kl(
            own, other, *keys, weight=valid, keep=valid[None], temperature=temperature
        )
    return total / count


class SelfSimConfig(TapListKeys):
    """Keys of the method ``selfsim``."""

    weight: Weight = Field(0.35, description="factor of all terms; see docs/weights.md")
    taps: list[str] | None = Field(
        None, description="taps of the student; default: the deepest stage"
    )
    temperature: PositiveFloat = Field(0.07, description="T of the softmax over positions")
    positions: PositiveInt | None = Field(
        2048, description="largest number of an image: larger maps are averaged; null: any"
    )


class SelfSim(TapListMethod[SelfSimConfig]):
    """Terms: one per tap of the student, means over valid positions."""

    name = "selfsim"
    kind = "relation"
    paper = "LightlyTrain's local term; within an image what CIRKD has in a batch, arXiv 2204.06986"
    year = 2025
    equation = "mean_positions Σ_j p_t log(p_t / p_s), p = softmax_j(cos(f_i, f_j) / T) in an image"
    cost = "products of N²·(C_s + C_t) per image, streamed: no map of similarities is kept"
    default_taps = ("stage5",)
    conversions: ClassVar = {
        "LightlyTrain v3, local": Conversion(1, note="T 0.07; tokens of a ViT teacher"),
    }

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        terms = {}
        temperature, positions = self.config.temperature, self.config.positions
        for tap, teacher_tap in self.pairs.items():
            features, target = student.tap(tap), teacher.tap(teacher_tap)
            mask = context.mask_at(*common_size(features, target))
            value = selfsim_loss(
                features, target, mask=mask, temperature=temperature, positions=positions
            )
            keep, _ = limited_maps(mask, positions)
            terms[tap] = Term(value, keep.sum(dtype=torch.float64))
        return terms
