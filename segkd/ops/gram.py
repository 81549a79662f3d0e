"""Nodes of feature maps, and the distance of their affinities without an N x N matrix.

The affinity of two nodes is their cosine. With the unit nodes as columns of S and T,

    ‖SᵀS − TᵀT‖² = ‖SSᵀ‖² + ‖TTᵀ‖² − 2 ‖STᵀ‖²,      gradient in S: 4 (SSᵀ S − STᵀ T)

The cost of the left side grows with N², of the right side with N. The right side is a small
difference of large numbers, so all products are in full float32 or in float64.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from segkd.ops.blocks import BlockSize
from segkd.ops.precision import full_precision

# Elements normalised at a time: on a CPU what fits the cache, elsewhere enough to keep a device
# busy without a second copy of the largest maps.
_BLOCK = BlockSize(2**18, 2**24)
_EPS = 1e-12  # mean square below which a node has no direction


def affinity_distance(
    student: Tensor, teacher: Tensor, *, keep: Tensor | None = None, detach_norm: bool = False
) -> Tensor:
    """Σ over images and over pairs (i, j) of their nodes of (cos(s_i, s_j) − cos(t_i, t_j))².

    Half types are raised to float32, regardless of autocast and TF32 settings. A node whose mean
    square is below 1e-12 has no direction: its cosines are 0 and it gets no gradient. The teacher
    gets no gradient; there is no double backward.

    Args:
        student: nodes (B, C_s, N).
        teacher: nodes (B, C_t, N); channels may differ.
        keep: (B, N) bool; nodes that are False are in no pair. None: all are kept.
        detach_norm: the gradient treats the student's norms as constants.

    Returns:
        A scalar, float32 or wider, never below 0.

    Raises:
        ValueError: the numbers of images or of nodes differ.
    """
    if student.shape[::2] != teacher.shape[::2]:
        raise ValueError(
            f"affinity_distance: student has shape {tuple(student.shape)}, teacher "
            f"{tuple(teacher.shape)}; both need the same images and nodes. Bring maps to one size "
            "with segkd.ops.resize.match_sizes first"
        )
    return _AffinityDistance.apply(student, teacher, keep, detach_norm)


def pool_nodes(
    maps: Tensor,
    mask: Tensor,
    pool: int | float | tuple[int, int] | None,
    kind: Literal["avg", "max"] = "avg",
) -> tuple[Tensor, Tensor]:
    """Reduces each window of positions to one node, from its valid positions alone.

    Args:
        maps: (B, C, h, w).
        mask: (B, h, w) bool, True where positions are valid.
        pool: an int is the side of the windows, a float below 1 their share of h and of w; the
            last windows are smaller if they do not fit evenly. ``(gh, gw)`` is the number of
            windows. None: every position is a node.
        kind: mean or maximum.

    Returns:
        Nodes (B, C, gh, gw), float32 or wider, 0 where invalid; and (B, gh, gw) bool: a node is
        valid if any of its positions is.

    Raises:
        ValueError: ``pool`` is larger than the maps, or not positive.
    """
    if pool is None:
        return maps, mask
    mean, maximum = _pooling(pool, *mask.shape[1:])
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    inside = mask.unsqueeze(1)
    valid = maximum(inside.to(maps.dtype)) > 0
    if kind == "max":
        nodes = maximum(maps.masked_fill(~inside, float("-inf")))
        return nodes.masked_fill(~valid, 0), valid.squeeze(1)
    share = mean(inside.to(maps.dtype)).masked_fill(~valid, 1)
    return mean(maps.masked_fill(~inside, 0)) / share, valid.squeeze(1)


def limited_maps(
    mask: Tensor, positions: int | None, *maps: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Maps with at most so many positions: larger ones are means of square windows.

    Args:
        mask: (B, h, w) bool, True where positions are valid.
        positions: largest number of an image; None: any.
        maps: (B, C_i, h, w) each.

    Returns:
        The mask of the windows (B, gh, gw), which are valid if any of their positions is; and the
        maps, (B, C_i, gh, gw), means of valid positions. Maps that are small enough are returned
        as they are.
    """
    side, (h, w) = 1, mask.shape[1:]
    while positions is not None and math.ceil(h / side) * math.ceil(w / side) > positions:
        side += 1
    if side == 1:
        return mask, maps
    return pool_nodes(mask.unsqueeze(1), mask, side)[1], tuple(
        pool_nodes(one, mask, side)[0] for one in maps
    )


def _pooling(
    pool: int | float | tuple[int, int], h: int, w: int
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The functions that take the mean and the maximum of each window of an (h, w) map."""
    if isinstance(pool, tuple):
        sizes = pool
    else:
        sizes = (int(h * pool), int(w * pool)) if isinstance(pool, float) else (pool, pool)
    largest = f"at most {min(h, w)}, or a grid of at most ({h}, {w})"
    if not (1 <= sizes[0] <= h and 1 <= sizes[1] <= w) or (isinstance(pool, float) and pool >= 1):
        raise ValueError(f"pool {pool} does not fit a map of {h}x{w}: choose {largest}")
    if isinstance(pool, tuple):
        mean = partial(F.adaptive_avg_pool2d, output_size=sizes)
        return mean, partial(F.adaptive_max_pool2d, output_size=sizes)
    mean = partial(F.avg_pool2d, kernel_size=sizes, ceil_mode=True)
    return mean, partial(F.max_pool2d, kernel_size=sizes, ceil_mode=True)


class _AffinityDistance(torch.autograd.Function):
    """Keeps its inputs, and per image matrices of about C² numbers for the gradient."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, keep: Tensor | None, detach_norm: bool
    ) -> Tensor:
        dtype = torch.promote_types(student.dtype, teacher.dtype)
        dtype = torch.promote_types(dtype, torch.float32)
        scales = [_inverse_norms(nodes, keep, dtype) for nodes in (student, teacher)]
        ctx.direct = _direct_is_cheaper(student.shape[1], teacher.shape[1], student.shape[2])
        ctx.detach_norm = detach_norm
        with full_precision(student.device):
            form = _direct_form if ctx.direct else _gram_form
            value, matrices = form(student, teacher, *scales)
        ctx.save_for_backward(student, teacher, *scales, *matrices)
        return value.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        student, teacher, scale_s, scale_t, *matrices = ctx.saved_tensors
        gradient = torch.empty_like(student)
        images, nodes = _slices(student, teacher, whole=ctx.direct)
        with full_precision(student.device):
            for image, node in [(image, node) for image in images for node in nodes]:
                part = image, slice(None), node
                unit = student[part] * scale_s[part]
                if ctx.direct:
                    slope = unit @ matrices[0][image]
                else:
                    own, cross = (matrix[image] for matrix in matrices)
                    other = teacher[part] * scale_t[part]
                    slope = torch.baddbmm(own @ unit, cross, other, alpha=-1)
                if not ctx.detach_norm:  # a longer node has the same direction
                    slope -= unit * (unit * slope).sum(dim=1, keepdim=True)
                gradient[part] = slope * scale_s[part] * (4 * upstream)
        return gradient, None, None, None


def _gram_form(
    student: Tensor, teacher: Tensor, scale_s: Tensor, scale_t: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The distance in float64, and SSᵀ (B, C_s, C_s) and STᵀ (B, C_s, C_t)."""
    (batch, c_s, _), c_t = student.shape, teacher.shape[1]
    own, cross = scale_s.new_zeros(batch, c_s, c_s), scale_s.new_zeros(batch, c_s, c_t)
    value = scale_s.new_zeros((), dtype=torch.float64)
    images, nodes = _slices(student, teacher)
    for image in images:
        other = scale_s.new_zeros(len(own[image]), c_t, c_t)
        for node in nodes:
            part = image, slice(None), node
            s, t = student[part] * scale_s[part], teacher[part] * scale_t[part]
            own[image].baddbmm_(s, s.mT)
            cross[image].baddbmm_(s, t.mT)
            other.baddbmm_(t, t.mT)
        distance = _square(own[image]) + _square(other) - 2 * _square(cross[image])
        value = value + distance.clamp(min=0).sum()
    return value, (own, cross)


def _direct_form(
    student: Tensor, teacher: Tensor, scale_s: Tensor, scale_t: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The distance in float64, and SᵀS − TᵀT (B, N, N)."""
    s, t = student * scale_s, teacher * scale_t
    difference = torch.baddbmm(s.mT @ s, t.mT, t, alpha=-1)
    return _square(difference).sum(), (difference,)


def _direct_is_cheaper(c_s: int, c_t: int, nodes: int) -> bool:
    """Compares the number of multiplications; for equal channels C, true for N below 5/3 C."""
    return nodes * (2 * c_s + c_t) < 2 * c_s * c_s + 2 * c_s * c_t + c_t * c_t


def _slices(
    student: Tensor, teacher: Tensor, *, whole: bool = False
) -> tuple[list[slice], list[slice]]:
    """Slices of the images and of the nodes; every pair of them is one block of work."""
    budget = _BLOCK.on(student.device)
    batch, length = len(student), student.shape[2]
    channels = student.shape[1] + teacher.shape[1]
    nodes = length if whole else min(length, max(1, budget // channels))
    images = max(1, budget // max(1, nodes * channels))
    return (
        [slice(start, start + images) for start in range(0, batch, images)],
        [slice(start, start + nodes) for start in range(0, length, max(1, nodes))],
    )


def _inverse_norms(nodes: Tensor, keep: Tensor | None, dtype: torch.dtype) -> Tensor:
    """(B, 1, N): 1 / ‖node‖, and 0 for nodes that are not kept or have no direction."""
    squares = torch.linalg.vector_norm(nodes, dim=1, keepdim=True, dtype=dtype).square()
    without = squares < _EPS * nodes.shape[1]
    if keep is not None:
        without = without | ~keep.unsqueeze(1)
    return squares.rsqrt().masked_fill(without, 0)


def _square(matrices: Tensor) -> Tensor:
    """(B,): the sum of squares of each matrix, in float64."""
    return matrices.square().sum(dim=(1, 2), dtype=torch.float64)
