"""Divergence between the similarities of two networks, streamed over blocks of rows.

For an anchor a and the N keys of an image j, a network's row is softmax_n(a · key_jn / T). The
direct form keeps several A×N maps for each image. Here a block holds whole rows, so the gradient
Σ (p_s − p_t) · key / T is computed together with the value: four products as in the direct form,
without recomputation, and only gradients of the size of the features are kept for backward.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from segkd.ops.blocks import BlockSize
from segkd.ops.precision import tf32_products
from segkd.ops.symmetric_kl import is_worthwhile, symmetric_kl

# Similarities per block: on a CPU about what fits the cache, elsewhere enough to keep a device
# busy. Blocks of fewer rows make thin, slow products.
_BLOCK = BlockSize(2**21, 2**25)
_ROWS = 128
_EPS = 1e-6  # root mean square below which a vector has no direction


def unit_nodes(maps: Tensor) -> Tensor:
    """The vector of each position, scaled to length 1: (B, C, h, w) -> (B, N, C).

    Half types are raised to float32. Vectors without a direction become 0.
    """
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    return unit(maps, dim=1).flatten(2).mT.contiguous()


def unit_channels(student: Tensor, teacher: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each channel as a vector over the valid nodes of its image, scaled to length 1.

    Args:
        student, teacher: (B, C_s, N) and (B, C_t, N); equal C if channels are paired.
        keep: (B, N) bool, True for valid nodes.

    Returns:
        (B, C_s, N) and (B, C_t, N), 0 at invalid nodes, and (B, C_s) bool: channels of images
        that have a valid node.
    """
    student, teacher = (
        unit(x.to(torch.promote_types(x.dtype, torch.float32)).masked_fill(~keep[:, None], 0))
        for x in (student, teacher)
    )
    return student, teacher, keep.any(dim=1, keepdim=True).expand(-1, student.shape[1])


def unit(vectors: Tensor, dim: int = -1) -> Tensor:
    """Scales vectors along ``dim`` to length 1, any shape.

    A vector whose root mean square is below 1e-6 has no direction: it becomes 0 and gets no
    gradient instead of a huge one.
    """
    norm = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    without = norm < _EPS * vectors.shape[dim] ** 0.5
    return vectors * norm.masked_fill(without, torch.inf).reciprocal()


def similarity_kl(
    student: Tensor,
    teacher: Tensor,
    student_keys: Tensor,
    teacher_keys: Tensor,
    *,
    weight: Tensor | None = None,
    keep: Tensor | None = None,
    temperature: float = 0.1,
) -> Tensor:
    """Σ_a weight_a Σ_j KL(teacher ‖ student) over the kept keys of each image j.

    Gradients reach ``student`` and ``student_keys``; there is no double backward. Half types are
    raised to float32, regardless of autocast. Vectors are not normalised here: scale them to
    length 1 first (``unit_nodes``).

    Args:
        student, teacher: anchors (A, C_s) and (A, C_t).
        student_keys, teacher_keys: (J, N, C_s) and (J, N, C_t); one tensor for both where the
            networks share a bank.
        weight: (A,) factor or bool per anchor; None: 1.
        keep: (J, N) bool, False for keys that are excluded from their softmax; None: all are kept.
            Images without a kept key add nothing.
        temperature: T of both softmaxes.

    Returns:
        A scalar.

    Raises:
        ValueError: the shapes do not match.
    """
    shapes = [tuple(x.shape) for x in (student, teacher, student_keys, teacher_keys)]
    (a_s, c_s), (a_t, c_t), (*jn_s, kc_s), (*jn_t, kc_t) = shapes
    if a_s != a_t or jn_s != jn_t or c_s != kc_s or c_t != kc_t:
        raise ValueError(
            "similarity_kl: anchors are (A, C_s), (A, C_t) and keys (J, N, C_s), (J, N, C_t), but "
            f"got {shapes[0]}, {shapes[1]} and {shapes[2]}, {shapes[3]}"
        )
    if weight is None:
        weight = torch.ones_like(student[:, 0])
    return _SimilarityKL.apply(
        student, teacher, student_keys, teacher_keys, weight, keep, temperature
    )


def mean_similarity_kl(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor,
    student_keys: Tensor,
    teacher_keys: Tensor,
    keep: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """``similarity_kl`` as the mean over pairs of an anchor and an image that has keys.

    Where anchors and weight are the very tensors of keys and ``keep``, half of the products are
    computed (``symmetric_kl``).

    Args:
        student, teacher: anchors (B, M, C_s) and (B, M, C_t), of length 1 or 0 like the keys.
        weight: (B, M) bool, True for anchors that count.
        student_keys, teacher_keys, keep, temperature: as of ``similarity_kl``.

    Returns:
        The mean, a differentiable zero if there is no pair, and the number of pairs in float64.
    """
    among = student_keys is student and teacher_keys is teacher and keep is weight
    if among and is_worthwhile(keep.shape[1], temperature):
        total = symmetric_kl(student, teacher, keep, temperature)
    else:
        total = similarity_kl(
            student.flatten(0, 1),
            teacher.flatten(0, 1),
            student_keys,
            teacher_keys,
            weight=weight.flatten(),
            keep=keep,
            temperature=temperature,
        )
    pairs = weight.sum(dtype=torch.float64) * keep.any(dim=1).sum()
    return total / pairs.clamp(min=1).to(total.dtype), pairs


class _SimilarityKL(torch.autograd.Function):
    """Computes the gradients together with the value and keeps only them."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        student_keys: Tensor,
        teacher_keys: Tensor,
        weight: Tensor,
        keep: Tensor | None,
        temperature: float,
    ) -> Tensor:
        ctx.types = student.dtype, student_keys.dtype
        dtype = torch.promote_types(student.dtype, teacher.dtype)
        dtype = torch.promote_types(dtype, torch.float32)
        student, teacher, student_keys, teacher_keys = (
            x.to(dtype).contiguous() for x in (student, teacher, student_keys, teacher_keys)
        )
        gradients = [
            torch.zeros_like(x) if ctx.needs_input_grad[place] else None
            for place, x in ((0, student), (2, student_keys))
        ]
        with tf32_products(student.device):
            value = _stream(
                (student, teacher),
                (student_keys, teacher_keys),
                weight.to(dtype),
                None if keep is None else _exclusion(keep, dtype),
                temperature,
                gradients,
            )
        ctx.save_for_backward(*gradients)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        anchors, keys = (
            None if gradient is None else (gradient * upstream).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.types, strict=True)
        )
        return anchors, None, keys, None, None, None, None


def _stream(
    anchors: tuple[Tensor, Tensor],
    keys: tuple[Tensor, Tensor],
    weight: Tensor,
    offset: Tensor | None,
    temperature: float,
    gradients: list[Tensor | None],
) -> Tensor:
    """The value; gradients are added to ``gradients``, of the student's anchors and keys."""
    for_anchors, for_keys = (None if x is None else x.flatten(0, -2) for x in gradients)
    keys_s, keys_t = (x.flatten(0, 1) for x in keys)
    images, size = keys[0].shape[:2]
    value, scratch = weight.new_zeros(()), None
    for rows, group in _blocks(len(weight), images, size, weight.device.type):
        scaled_s, scaled_t = (x[rows] / temperature for x in anchors)
        shape = (3, len(scaled_s), group.stop - group.start, size)
        if scratch is None:  # no later block is larger
            scratch = weight.new_empty(math.prod(shape))
        log_s, log_t, p_t = scratch[: math.prod(shape)].view(shape).unbind()
        columns = slice(group.start * size, group.stop * size)
        bias = None if offset is None else offset[group].flatten()
        _log_softmax(scaled_s, keys_s[columns], bias, p_t, log_s)
        _log_softmax(scaled_t, keys_t[columns], bias, p_t, log_t)
        torch.exp(log_t, out=p_t)
        divergence = torch.linalg.vecdot(log_t.sub_(log_s), p_t).sum(1)
        value = value + divergence.dot(weight[rows])
        difference = log_s.exp_().sub_(p_t).flatten(1)
        row_weight = weight[rows, None]
        if for_anchors is not None:
            for_anchors[rows] += (difference @ keys_s[columns]).mul_(row_weight / temperature)
        if for_keys is not None:
            for_keys[columns].addmm_(difference.T, scaled_s * row_weight)
    return value


def _blocks(anchors: int, images: int, size: int, device: str) -> Iterator[tuple[slice, slice]]:
    """Rows and images of keys that together cover all pairs; the largest block comes first."""
    budget = _BLOCK.on(device)
    height = max(1, min(anchors, max(_ROWS, budget // max(1, size))))
    width = max(1, min(images, budget // max(1, height * size)))
    for row in range(0, anchors, height):
        for image in range(0, images, width):
            yield slice(row, min(row + height, anchors)), slice(image, min(image + width, images))


def _log_softmax(
    anchors: Tensor, keys: Tensor, bias: Tensor | None, scratch: Tensor, out: Tensor
) -> None:
    """Writes log softmax(anchors · keys + bias) of each image's keys to ``out`` (rows, J, N)."""
    products = scratch.flatten(1)
    if bias is None:
        torch.mm(anchors, keys.T, out=products)
    else:
        torch.addmm(bias, anchors, keys.T, out=products)
    torch.log_softmax(scratch, dim=-1, out=out)


def _exclusion(keep: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where ``keep``, else low enough to vanish in a softmax.

    It is finite: an image without any kept key has uniform rows on both sides, which agree.
    """
    low = torch.finfo(dtype).min / 2
    return torch.zeros(keep.shape, dtype=dtype, device=keep.device).masked_fill_(~keep, low)
