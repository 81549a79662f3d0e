"""Helpers of losses on node sets: rows (M, C) of student and teacher."""

import torch
from torch import Tensor


def paired_nodes(
    student: Tensor, teacher: Tensor, *, limit: int | None = None, size: str = "M²"
) -> tuple[Tensor, Tensor]:
    """Two node sets of equal length in float32 or wider, the teacher's without gradient.

    Args:
        student: (M, C_s).
        teacher: (M, C_t), the same nodes in the same order.
        limit: largest M; None: unlimited.
        size: how the cost grows with M, for the message.

    Raises:
        ValueError: shapes do not match, or more nodes than ``limit``.
    """
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher):
        raise ValueError(
            f"student has shape {tuple(student.shape)}, teacher {tuple(teacher.shape)}; expected "
            "nodes (M, C_s) and (M, C_t). Take them from maps with "
            "segkd.methods.shared.node_sampler"
        )
    require_few_nodes(len(student), limit, size)
    return raised(student), raised(teacher.detach())


def require_few_nodes(count: int, limit: int | None, size: str = "M²") -> None:
    """Checks the number of nodes; arguments as of ``paired_nodes``.

    Raises:
        ValueError: there are more than ``limit``.
    """
    if limit is not None and count > limit:
        raise ValueError(
            f"{count} nodes are more than node_limit={limit}: the cost grows with {size}. "
            "Pass a random part of the nodes, or a larger node_limit"
        )


def raised(values: Tensor) -> Tensor:
    """Values of any shape in float32, or in their own type if it is wider."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def unit_rows(nodes: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Scales each row of (M, C) to length 1.

    A row whose root mean square is below ``eps`` has no direction: it becomes 0 and gets no
    gradient instead of a huge one.
    """
    norm = torch.linalg.vector_norm(nodes, dim=1, keepdim=True)
    without = norm < eps * nodes.shape[1] ** 0.5
    return (nodes / norm.masked_fill(without, 1)).masked_fill(without, 0)


def distances(nodes: Tensor) -> Tensor:
    """Euclidean distances (M, M) of all pairs of rows, in float64.

    They are computed from differences: the form with inner products loses small distances. Pairs
    closer than a millionth of the largest distance are the same node up to rounding; their
    distance is exactly 0 and has no gradient, where that of the square root would be infinite.
    """
    nodes = nodes.double()
    if len(nodes) == 0:
        return nodes @ nodes.T
    apart = torch.cdist(nodes, nodes, compute_mode="donot_use_mm_for_euclid_dist")
    return apart.masked_fill(apart <= 1e-6 * apart.detach().amax(), 0)


def mean_or_zero(values: Tensor) -> Tensor:
    """The mean of all elements, a scalar; a differentiable zero without any."""
    return values.sum() / max(values.numel(), 1)


def share_of_largest(values: Tensor) -> Tensor:
    """Values of any shape divided by their maximum, unless it is 0; differentiates the maximum."""
    if not values.numel():
        return values
    largest = values.amax()
    return values / largest.masked_fill(largest == 0, 1)
