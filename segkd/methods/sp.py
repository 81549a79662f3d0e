"""Similarity-preserving distillation: matches the teacher's similarities between nodes.

Tung, Mori: Similarity-Preserving Knowledge Distillation. ICCV 2019, arXiv 1907.09682.

    L = mean over nodes i of Σ_j (g_t,ij − g_s,ij)²,   g_i = (Q Qᵀ)_i / ‖(Q Qᵀ)_i‖

Q has one row per node: in the paper one per image of the batch, with all of its C·h·w values.
Taps: one of each network, ``head`` by default; channels and sizes may differ.
The paper divides by the number of pairs instead of the number of rows. Rows have length 1, so
that value falls as the batch grows, and its weight of 3000 belongs to a batch of 64; a mean over
rows does not depend on the batch, and the published weight is divided by it. The paper's form is
``nodes: image``; a segmentation batch has too few images for it (a single one has loss 0), so
class regions are the default. Public code includes padding in the products; here it is zeroed.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from segkd.methods.base import Context, Conversion, Weight
from segkd.methods.shared.node_sampler import NodeMethod, TapNodeKeys
from segkd.ops.image_gram import image_gram
from segkd.ops.masked import position_mask
from segkd.ops.nodes import paired_nodes, require_few_nodes, unit_rows
from segkd.ops.precision import full_precision
from segkd.ops.queued import queued
from segkd.ops.resize import match_sizes
from segkd.structures import Batch, Outputs, Term


def sp_loss(
    student: Tensor, teacher: Tensor, *, mask: Tensor | None = None, node_limit: int = 4096
) -> Tensor:
    """Mean over nodes of the squared distance of their rows of similarities.

    Args:
        student: nodes (M, C_s), or features (B, C_s, h, w) whose images are the nodes.
        teacher: (M, C_t) or (B, C_t, h', w'); detached.
        mask: of features, (B, h, w) bool at the smaller of both sizes, True where positions are
            valid; None: all. Images without any are skipped.
        node_limit: largest number of nodes; memory grows with its square.

    Returns:
        A scalar, float32 or wider; a differentiable zero if there is no node.

    Raises:
        ValueError: shapes do not match, or too many nodes.
    """
    if student.ndim == 4:
        student, teacher = match_sizes(student, teacher.detach())
        mask = position_mask(student, mask)
        require_few_nodes(len(student), node_limit)
        difference = _unit(image_gram(student, mask)) - _unit(image_gram(teacher, mask))
        count = mask.flatten(1).any(dim=1).sum().clamp(min=1)  # rows of the others are 0
        return difference.square().sum() / count
    if mask is not None:
        raise ValueError("a mask needs features (B, C, h, w); remove invalid nodes instead")
    student, teacher = paired_nodes(student, teacher, limit=node_limit)
    with full_precision(student.device):
        difference = _unit(_products(student)) - _unit(_products(teacher))
    return difference.square().sum() / max(len(difference), 1)


def _products(nodes: Tensor) -> Tensor:
    nodes = _over_largest(nodes)
    return nodes @ nodes.T


def _unit(products: Tensor) -> Tensor:
    """Each row of (M, M) products scaled to length 1; the scale of all nodes cancels."""
    return unit_rows(_over_largest(products), eps=1e-12)


def _over_largest(values: Tensor) -> Tensor:
    """Values divided by their largest size, so that squares do not overflow."""
    if not values.numel():
        return values
    return values / values.detach().abs().amax().clamp(min=torch.finfo(values.dtype).tiny)


class SPConfig(TapNodeKeys):
    """Keys of the method ``sp``."""

    weight: Weight = Field(0.3, description="factor of all terms; see docs/weights.md")


class SP(NodeMethod[SPConfig]):
    """Term ``sp``, the same value on all processes."""

    name = "sp"
    kind = "relation"
    paper_weight = 47.0
    paper = "Tung, Mori: Similarity-Preserving Knowledge Distillation, arXiv 1907.09682"
    year = 2019
    equation = "mean_i Σ_j (g_t,ij − g_s,ij)², g_i = (Q Qᵀ)_i / ‖(Q Qᵀ)_i‖, a row of Q per node"
    cost = "a mean over the features, M·M·C for M nodes; `image` gathers whole feature maps"
    conversions: ClassVar = {
        "paper, RepDistiller, mdistiller": Conversion(3000, {"N": -1}, "its batch of 64: 46.9"),
    }

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        maps, target = self.tapped(student, teacher)
        limit = self.config.node_limit
        if self.config.nodes == "image":
            pair = match_sizes(maps, target.detach())
            mask = context.mask_at(*pair[0].shape[-2:])
            mask, mine, other = context.gather_rows(mask, *pair)
            if len(mask) > limit:  # as of nodes: a random part, the same on all processes
                chosen = torch.randperm(len(mask), generator=context.generator)[:limit]
                chosen = queued(chosen.sort().values, mask.device)
                mask, mine, other = (x.index_select(0, chosen) for x in (mask, mine, other))
            value = sp_loss(mine, other, mask=mask, node_limit=limit)
        else:
            nodes = self.sampler([maps], [target], context)
            value = sp_loss(*nodes.student, *nodes.teacher, node_limit=limit)
        return {"sp": Term(value)}
