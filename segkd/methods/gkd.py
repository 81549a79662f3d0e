"""GKD: the student's features, gathered by attention to the teacher's, predict the teacher's.

Generalizable Knowledge Distillation for semantic segmentation, 2026, arXiv 2603.02554: its
query-based distillation. The formula is that of its public code; we have not read the paper.

    L = mean over valid positions and channels of (A v − f_t)²
    A = softmax(q kᵀ),   q = W_q LN(f_s),   k = f_t,   v = W_v LN(f_s)

Each position of the student asks where the teacher has features like those it should have, and its
answer is a mean of what the student has there. Keys are the teacher's features as they are, and
products are not divided by √C. Values are the student's: nothing of the teacher reaches the answer
except the weights of that mean. No layer has a bias, and the layer norm has no weights: a constant
must come from the student, too. Images need no labels, so this is a first stage, in which an
encoder learns from a teacher of features (``configs/foundation``).

The paper's networks are transformers. It also hides half of the student's patches, and adds the
class token; both are left out here. Patches that are grey for a convolution blur its neighbours and
enter the statistics of its batch norm, and ``prepare`` would hide them from the teacher as well.
Also ours: features are divided by the scale of the teacher's, and W_q starts where q kᵀ has
deviations of about 1, W_v near zero, as in all adapters.

Taps: the deepest stage by default. The attention has N² products, where the paper has the few
tokens of a ViT; so maps of more than ``positions`` are averaged over windows first: ours, too.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from segkd.methods.base import BuildContext, Context, Conversion, Weight
from segkd.methods.shared.feature_scale import ScaleKeys
from segkd.methods.shared.tapped import TapListKeys, TapListMethod
from segkd.modules.adapter import start_gain
from segkd.ops.gram import limited_maps
from segkd.ops.masked import position_mask
from segkd.ops.resize import common_size, match_sizes
from segkd.ops.squared_distance import masked_mse
from segkd.structures import Batch, Outputs, Term


class TeacherQuery(nn.Module):
    """The student's nodes, gathered by attention to the teacher's.

    Args:
        in_channels: of the student.
        out_channels: of the teacher.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_channels, elementwise_affine=False)
        self.query = nn.Linear(in_channels, out_channels, bias=False)
        self.value = nn.Linear(in_channels, out_channels, bias=False)
        for layer, gain in ((self.query, out_channels**-0.5), (self.value, start_gain())):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            with torch.no_grad():
                layer.weight *= gain

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        """Gathers.

        Args:
            student: (B, C_s, h, w), zero at invalid positions.
            teacher: (B, C_t, h, w), the keys, zero at invalid positions.
            mask: (B, h, w) bool, True where positions are keys.

        Returns:
            (B, C_t, h, w), float32 or wider.
        """
        nodes = self.norm(student.flatten(2).mT)
        query, value = (layer(nodes).to(teacher.dtype) for layer in (self.query, self.value))
        keep = mask.flatten(1)
        keep = keep | ~keep.any(1, keepdim=True)  # a softmax has one key at least
        with torch.autocast(teacher.device.type, enabled=False):
            found = F.scaled_dot_product_attention(
                query[:, None],
                teacher.flatten(2).mT[:, None],
                value[:, None],
                attn_mask=keep[:, None, None],
                scale=1.0,
            )
        return found[:, 0].mT.reshape(teacher.shape)


def gkd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    query: Callable[[Tensor, Tensor, Tensor], Tensor],
    mask: Tensor | None = None,
    positions: int | None = None,
) -> Tensor:
    """Mean squared difference of the gathered and the teacher's features.

    Args:
        student: features (B, C_s, h, w).
        teacher: features (B, C_t, h', w'); detached.
        query: makes (B, C_t, h, w) of both maps and the mask: a ``TeacherQuery``.
        mask: (B, h, w) bool at the smaller of both sizes, True where positions are valid; None:
            all. Invalid positions are neither queries nor keys.
        positions: largest number of an image; square windows of larger maps are averaged over
            their valid positions. None: as many as there are.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no position is valid.

    Raises:
        ValueError: the mask has another shape.
    """
    student, teacher = match_sizes(student, teacher.detach(), mask=mask)
    mask, (student, teacher) = limited_maps(
        position_mask(student, mask), positions, student, teacher
    )
    return masked_mse(query(student, teacher, mask), teacher, mask)


class GKDConfig(TapListKeys, ScaleKeys):
    """Keys of the method ``gkd``."""

    weight: Weight = Field(0.11, description="factor of all terms; see docs/weights.md")
    taps: list[str] | None = Field(
        None, description="taps of the student; default: the deepest stage"
    )
    positions: PositiveInt | None = Field(
        2048, description="largest number of an image: larger maps are averaged; null: any"
    )


class GKD(TapListMethod[GKDConfig]):
    """Terms: one per tap of the student, means over valid positions."""

    name = "gkd"
    kind = "feature"
    paper = "Generalizable Knowledge Distillation, arXiv 2603.02554"
    year = 2026
    published = "GTAV → 3 sets, ViT-B: 44.2 → 57.9 (its README); in two stages, hiding patches"
    equation = "mean_{positions, channels} (softmax(W_q f_s · f_t) W_v f_s − f_t)², f_s after LN"
    cost = "two 1x1 convolutions and an attention: products of 2·N²·C_t per image"
    default_taps = ("stage5",)
    conversions: ClassVar = {
        "GKD": Conversion(1, note="its term of visible patches; raw features, `scale: none`"),
    }

    def build(self, spec: BuildContext) -> None:
        self.queries = nn.ModuleList(
            TeacherQuery(spec.student[mine].channels, spec.teacher[theirs].channels)
            for mine, theirs in self.pairs.items()
        )

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        terms, pairs = {}, self.scaled(student, teacher, context)
        for tap, query, (features, target) in zip(self.pairs, self.queries, pairs, strict=True):
            mask = context.mask_at(*common_size(features, target))
            limit = self.config.positions
            value = gkd_loss(features, target, query=query, mask=mask, positions=limit)
            keep, _ = limited_maps(mask, limit)
            terms[tap] = Term(value, keep.sum(dtype=torch.float64))
        return terms
