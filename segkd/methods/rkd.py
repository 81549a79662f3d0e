"""Relational distillation: matches the teacher's distances and angles between nodes.

Park, Kim, Lu, Cho: Relational Knowledge Distillation. CVPR 2019, arXiv 1904.05068.

    L_D = mean over pairs (i, j) of h(d_s,ij / μ_s − d_t,ij / μ_t),   d_ij = ‖x_i − x_j‖
    L_A = mean over triplets (i, j, k) of h(cos_s,ijk − cos_t,ijk),   at x_j, to x_i and x_k
    L   = 25 L_D + 50 L_A                                            (h: smooth L1)

μ is the mean of the non-zero distances, and pairs and triplets of a node with itself count in both
means, as in the authors' code. So duplicating every node changes nothing.
Taps: one of each network, ``head`` by default; channels may differ. Nodes are class regions by
default; images, as in the paper, need a batch of 8 or more.
Public code takes the square root of a Gram matrix, which has to be clamped, and clamped distances
wrongly enter μ. Here distances are computed directly in float64, those of equal nodes are 0 and
have no gradient. Public code stores M·M·C differences and M³ cosines for the angles. Here
the cosine of the angle at node j between i and k follows from the distances d of all pairs,

    cos_ijk = (d_ij² + d_kj² − d_ik²) / (2 d_ij d_kj)

so C does not appear, and the gradient in the squared distances has a closed form. It is
accumulated over blocks of nodes j together with the value: M² numbers are kept for backward.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import smooth_l1_loss

from segkd.methods.base import Context, Conversion, Weight
from segkd.methods.shared.node_sampler import NodeMethod, TapNodeKeys
from segkd.ops.blocks import BlockSize
from segkd.ops.nodes import distances, mean_or_zero, paired_nodes, unit_rows
from segkd.structures import Batch, Outputs, Term

# Triplets per block: on a CPU what fits the cache, elsewhere enough to keep a device busy.
_BLOCK = BlockSize(2**16, 2**23)

_WEIGHTS = {"distance": 25.0, "angle": 50.0}


def rkd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    distance_weight: float = _WEIGHTS["distance"],
    angle_weight: float = _WEIGHTS["angle"],
    normalize: bool = False,
    node_limit: int = 256,
) -> Tensor:
    """Weighted sum of the differences of pair-wise distances and of angles of triplets.

    Args:
        student: nodes (M, C_s).
        teacher: the same nodes (M, C_t); detached.
        distance_weight: of L_D.
        angle_weight: of L_A; 0 skips its M³ operations.
        normalize: scale nodes to length 1 first.
        node_limit: largest M; the cost of angles grows with its cube.

    Returns:
        A scalar, float32 or wider; a differentiable zero without nodes.

    Raises:
        ValueError: shapes do not match, or too many nodes.
    """
    pair_wise, angle_wise = _terms(student, teacher, normalize, node_limit, angle_weight > 0)
    return distance_weight * pair_wise + angle_weight * angle_wise


def _terms(
    student: Tensor, teacher: Tensor, normalize: bool, node_limit: int, with_angles: bool
) -> tuple[Tensor, Tensor]:
    """L_D and L_A; without angles the latter is a constant 0."""
    student, teacher = paired_nodes(student, teacher, limit=node_limit, size="M³")
    own, other = (distances(unit_rows(x) if normalize else x) for x in (student, teacher))
    pairs = mean_or_zero(smooth_l1_loss(_relative(own), _relative(other), reduction="none"))
    angles = angle_distance(own, other) if with_angles else pairs.new_zeros(())
    return pairs.to(student.dtype), angles.to(student.dtype)


def _relative(lengths: Tensor) -> Tensor:
    """Distances divided by the mean of the non-zero ones."""
    mean = lengths.sum() / (lengths > 0).sum().clamp(min=1)
    return lengths / mean.masked_fill(mean == 0, 1)


class RKDConfig(TapNodeKeys):
    """Keys of the method ``rkd``."""

    weight: Weight = Field(0.012, description="factor of all terms; see docs/weights.md")
    normalize: bool = Field(False, description="scale nodes to length 1 first")
    pixels: PositiveInt = Field(16, description="`pixel`: nodes per image")
    node_limit: PositiveInt = Field(
        256,
        description="of more nodes in the global batch, a random part of this size is taken",
    )


class RKD(NodeMethod[RKDConfig]):
    """Terms ``distance`` and ``angle``, the same values on all processes."""

    name = "rkd"
    kind = "relation"
    paper = "Park, Kim, Lu, Cho: Relational Knowledge Distillation, arXiv 1904.05068"
    year = 2019
    equation = (
        "distance: mean_ij h(d_s,ij/μ_s − d_t,ij/μ_t); angle: mean_ijk h(cos_s,ijk − cos_t,ijk); "
        "h smooth L1"
    )
    cost = "a mean over the features; for M nodes M·M·C and, for angles, M³"
    default_weights: Mapping[str, float] = _WEIGHTS
    conversions: ClassVar = {
        "RepDistiller, mdistiller": Conversion(1, note="terms 25 and 50"),
        "mmrazor": Conversion(1, note="terms 25 and 50; normalize: true"),
        "authors, metric learning": Conversion(1, note="terms 1 and 2"),
    }

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        nodes = self.nodes(student, teacher, context)
        with_angles = self.config.weights.get("angle", _WEIGHTS["angle"]) > 0
        pairs, angles = _terms(
            nodes.student[0],
            nodes.teacher[0],
            self.config.normalize,
            self.config.node_limit,
            with_angles,
        )
        terms = {"distance": Term(pairs), "angle": Term(angles)}
        return terms if with_angles else {"distance": terms["distance"]}


def angle_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over triplets of the smooth L1 distance (bend at 1) of their cosines.

    If two nodes of a triplet coincide its cosine is defined as 0 and has no gradient.
    The teacher gets no gradient; the student's is not differentiable again.

    Args:
        student: distances (M, M), symmetric, exactly 0 where nodes coincide. Use float64: in
            float32 the angle between a short and a long side is lost.
        teacher: the same of the teacher's nodes.

    Returns:
        A scalar of the student's type; a differentiable zero without nodes.
    """
    return _AngleDistance.apply(student.square(), teacher)


class _AngleDistance(torch.autograd.Function):
    """The gradient in the squared distances is computed with the value and kept."""

    @staticmethod
    def forward(ctx: Any, squares: Tensor, teacher: Tensor) -> Tensor:
        nodes, other = len(squares), teacher.square()
        value, slope = squares.new_zeros(()), torch.zeros_like(squares)
        budget = _BLOCK.on(squares.device)
        block = max(1, budget // max(1, nodes * nodes))
        for start in range(0, nodes, block):
            at = slice(start, start + block)
            inverse = _inverse(squares[at])
            cosine = _cosines(squares, at, inverse)
            error = cosine - _cosines(other, at, _inverse(other[at]))
            bent = error.clamp(-1, 1)
            value = value + (bent * (error - 0.5 * bent)).sum()
            # d cos / d(d_ik²) is −½ of the product of both inverse lengths; d cos / d(d_ij²) is
            # ½ of it, minus cos / (2 d_ij²); i and k are interchangeable, which doubles the sums.
            direct = bent * inverse.unsqueeze(2) * inverse.unsqueeze(1)
            slope -= 0.5 * direct.sum(dim=0)
            slope[at] += direct.sum(dim=2) - (bent * cosine).sum(dim=2) * inverse.square()
        count = max(1, nodes) ** 3
        ctx.save_for_backward(slope / count)
        return value / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0] * upstream, None


def _inverse(squares: Tensor) -> Tensor:
    """(J, M): 1 / d, and 0 where nodes coincide."""
    return squares.rsqrt().masked_fill(squares == 0, 0)


def _cosines(squares: Tensor, at: slice, inverse: Tensor) -> Tensor:
    """(J, M, M): cosines at the nodes ``at`` between all pairs of others."""
    sides = squares[at]
    products = sides.unsqueeze(2) + sides.unsqueeze(1) - squares
    return products.mul_(0.5).mul_(inverse.unsqueeze(2)).mul_(inverse.unsqueeze(1))
