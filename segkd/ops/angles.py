"""Angles of all triplets of nodes, compared between two node sets without keeping M³ numbers.

With the distances d of all pairs, the angle at node j between i and k has the cosine

    cos_ijk = (d_ij² + d_kj² − d_ik²) / (2 d_ij d_kj)

so C does not appear, and the gradient in the squared distances has a closed form. It is summed
up over blocks of nodes j together with the value: M² numbers wait for backward.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Triplets that are worked on at a time: on a CPU what its cache holds, elsewhere what keeps a
# device busy.
_BLOCK_CPU, _BLOCK_DEVICE = 2**16, 2**23


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
