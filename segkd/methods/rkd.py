"""Relational distillation: distances and angles among nodes are to be the teacher's.

Park, Kim, Lu, Cho: Relational Knowledge Distillation. CVPR 2019, arXiv 1904.05068.

    L_D = mean over pairs (i, j) of h(d_s,ij / μ_s − d_t,ij / μ_t),   d_ij = ‖x_i − x_j‖
    L_A = mean over triplets (i, j, k) of h(cos_s,ijk − cos_t,ijk),   at x_j, to x_i and x_k
    L   = 25 L_D + 50 L_A                                            (h: smooth L1)

μ is the mean of the distances that are not 0, and pairs and triplets of a node with itself count
in both means, as in the authors' code. So a node that is there twice changes nothing.
Taps: one of each side, ``head`` by default; channels are free. Nodes are class regions by
default; images, as in the paper, need a batch of 8 or more.
The square root of a Gram matrix, as public codes take it, has to be clamped, and clamped pairs
join μ though they are no pairs. Here distances are taken directly in float64, those of equal
nodes are 0 and have no gradient. Code with angles keeps M·M·C differences and M³ cosines. Here
the angle at node j between i and k has its cosine from the distances d of all pairs,

    cos_ijk = (d_ij² + d_kj² − d_ik²) / (2 d_ij d_kj)

so C does not appear, and the gradient in the squared distances has a closed form. It is summed
up over blocks of nodes j together with the value: M² numbers wait for backward.
"""

from typing import ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import smooth_l1_loss

from segkd.methods.base import Context, Conversion, MethodConfig, Weight
from segkd.methods.shared.node_sampler import NodeKeys, NodeMethod
from segkd.methods.shared.tapped import TapKeys
from segkd.ops.nodes import distances, mean_or_zero, paired_nodes, unit_rows
from segkd.structures import Batch, Outputs, Term

# Triplets that are worked on at a time: on a CPU what its cache holds, elsewhere what keeps a
# device busy.
_BLOCK_CPU, _BLOCK_DEVICE = 2**16, 2**23

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
    """Weighted sum of the distances of pair-wise distances and of angles of triplets.

    Args:
        student: nodes (M, C_s).
        teacher: the same nodes (M, C_t); without gradient.
        distance_weight: of L_D.
        angle_weight: of L_A; 0 saves its M³ work.
        normalize: scale nodes to length 1 first.
        node_limit: largest M; the work for angles grows with its cube.

    Returns:
        A scalar, float32 or wider; 0 with a graph without nodes.

    Raises:
        ValueError: shapes that do not fit, or too many nodes.
    """
    pair_wise, angle_wise = _terms(student, teacher, normalize, node_limit, angle_weight > 0)
    return distance_weight * pair_wise + angle_weight * angle_wise


def _terms(
    student: Tensor, teacher: Tensor, normalize: bool, node_limit: int, with_angles: bool
) -> tuple[Tensor, Tensor]:
    """L_D and L_A; the latter is a plain 0 where it is not wanted."""
    student, teacher = paired_nodes(student, teacher, limit=node_limit, size="M³")
    own, other = (distances(unit_rows(x) if normalize else x) for x in (student, teacher))
    pairs = mean_or_zero(smooth_l1_loss(_relative(own), _relative(other), reduction="none"))
    angles = angle_distance(own, other) if with_angles else pairs.new_zeros(())
    return pairs.to(student.dtype), angles.to(student.dtype)


def _relative(lengths: Tensor) -> Tensor:
    """Distances divided by the mean of those that are not 0."""
    mean = lengths.sum() / (lengths > 0).sum().clamp(min=1)
    return lengths / mean.masked_fill(mean == 0, 1)


class RKD(NodeMethod):
    name = "rkd"
    kind = "relation"
    paper = "Park, Kim, Lu, Cho: Relational Knowledge Distillation, arXiv 1904.05068"
    year = 2019
    equation = (
        "distance: mean_ij h(d_s,ij/μ_s − d_t,ij/μ_t); angle: mean_ijk h(cos_s,ijk − cos_t,ijk); "
        "h smooth L1"
    )
    cost = "a mean over the features; for M nodes M·M·C and, for angles, M³"
    default_weights: ClassVar = _WEIGHTS
    conversions: ClassVar = {
        "RepDistiller, mdistiller": Conversion(1, note="terms 25 and 50"),
        "mmrazor": Conversion(1, note="terms 25 and 50; normalize: true"),
        "authors, metric learning": Conversion(1, note="terms 1 and 2"),
    }

    class Config(TapKeys, NodeKeys, MethodConfig):
        weight: Weight = Field(0.012, description="factor of all terms; see docs/weights.md")
        normalize: bool = Field(False, description="scale nodes to length 1 first")
        pixels: PositiveInt = Field(16, description="`pixel`: nodes per image")
        node_limit: PositiveInt = Field(
            256,
            description="of more nodes in the global batch, a random part of this size is taken",
        )

    def loss(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, context: Context
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

    Where two nodes of a triplet coincide there is no angle; its cosine is 0 and has no gradient.
    The teacher gets no gradient; the student's is not differentiable again.

    Args:
        student: distances (M, M), symmetric, 0 exactly where nodes coincide. In float64: in
            float32 a short side beside a long one has lost its angle.
        teacher: the same of the teacher's nodes.

    Returns:
        A scalar of the student's type; 0 with a graph without nodes.
    """
    return _AngleDistance.apply(student.square(), teacher)


class _AngleDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx, squares, teacher):
        nodes, other = len(squares), teacher.square()
        value, slope = squares.new_zeros(()), torch.zeros_like(squares)
        budget = _BLOCK_CPU if squares.device.type == "cpu" else _BLOCK_DEVICE
        block = max(1, budget // max(1, nodes * nodes))
        for start in range(0, nodes, block):
            at = slice(start, start + block)
            inverse = _inverse(squares[at])
            cosine = _cosines(squares, at, inverse)
            error = cosine - _cosines(other, at, _inverse(other[at]))
            bent = error.clamp(-1, 1)
            value += (bent * (error - 0.5 * bent)).sum()
            # d cos / d(d_ik²) is −½ of the product of both inverse lengths; d cos / d(d_ij²) is
            # ½ of it, less cos / (2 d_ij²); i and k change places, which doubles the sums.
            direct = bent * inverse.unsqueeze(2) * inverse.unsqueeze(1)
            slope -= 0.5 * direct.sum(dim=0)
            slope[at] += direct.sum(dim=2) - (bent * cosine).sum(dim=2) * inverse.square()
        count = max(1, nodes) ** 3
        ctx.save_for_backward(slope / count)
        return value / count

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        return ctx.saved_tensors[0] * upstream, None


def _inverse(squares: Tensor) -> Tensor:
    """(J, M): 1 / d, and 0 where nodes coincide."""
    return squares.rsqrt().masked_fill(squares == 0, 0)


def _cosines(squares: Tensor, at: slice, inverse: Tensor) -> Tensor:
    """(J, M, M): cosines at the nodes ``at`` between all pairs of others."""
    sides = squares[at]
    products = sides.unsqueeze(2) + sides.unsqueeze(1) - squares
    return products.mul_(0.5).mul_(inverse.unsqueeze(2)).mul_(inverse.unsqueeze(1))
