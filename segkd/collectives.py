"""Collectives with a gradient; all processes call them in the same order."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def all_sum(tensor: Tensor) -> Tensor:
    """Sum over processes, any shape equal on all; the gradient is summed as well."""
    return _AllSum.apply(tensor)


def gather(tensors: Sequence[Tensor], rank: int, world: int) -> tuple[Tensor, ...]:
    """Concatenates dim 0 of each tensor over all processes in rank order.

    The rows of all tensors travel together, as bytes: lengths are exchanged and read once, however
    many tensors there are. The gradient of a process's part is summed over processes.

    Args:
        tensors: (N, …) each, of any types; N may differ between processes, … may not.
        rank: of this process.
        world: number of processes.

    Raises:
        ValueError: the tensors have different lengths.
    """
    if len({len(tensor) for tensor in tensors}) > 1:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise ValueError(f"tensors that are gathered together need equal lengths, got {shapes}")
    return _Gather.apply(rank, world, *tensors)


class _AllSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        result = tensor.detach().clone()
        dist.all_reduce(result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rank: int, world: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        rows = [_bytes(tensor.detach()) for tensor in tensors]
        sent = rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)
        length = torch.tensor([len(sent)], device=sent.device)
        lengths = length.new_empty(world)
        _all_gather(lengths, length)
        ctx.lengths, ctx.rank = lengths.tolist(), rank
        # Collectives need equal shapes: pad to the longest part, cut after the exchange.
        padded = _lengthened(sent, max(ctx.lengths))
        parts = sent.new_empty(world * len(padded), sent.shape[1])
        _all_gather(parts, padded)
        columns = _cut(parts, ctx.lengths).split([part.shape[1] for part in rows], dim=1)
        joined = tuple(map(_restored, columns, tensors))
        needed = ctx.needs_input_grad[2:]
        ctx.mark_non_differentiable(
            *(tensor for tensor, wanted in zip(joined, needed, strict=True) if not wanted)
        )
        return joined

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        own = (
            _own_part(gradient, ctx.lengths, ctx.rank) if wanted else None
            for gradient, wanted in zip(gradients, needed, strict=True)
        )
        return None, None, *own


def _all_gather(out: Tensor, part: Tensor) -> None:
    # torch 2.14 renamed it.
    function = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    function(out, part)


def _reduce_scatter(out: Tensor, parts: Tensor) -> None:
    function = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    function(out, parts)


def _bytes(tensor: Tensor) -> Tensor:
    """(N, …) of any type as rows of bytes (N, b)."""
    width = math.prod(tensor.shape[1:])
    flat = tensor.reshape(len(tensor), width).contiguous()
    # Sides of length 1 may have any stride, which a view of another type refuses.
    return flat.as_strided(flat.shape, (width, 1)).view(torch.uint8)


def _restored(rows: Tensor, like: Tensor) -> Tensor:
    """Rows of bytes (M, b) as (M, …) of the type and shape of ``like`` (N, …)."""
    # One row counts as contiguous wherever it begins, which a view of another type refuses.
    rows = rows.contiguous() if len(rows) > 1 else rows.clone(memory_format=torch.contiguous_format)
    return rows.view(like.dtype).view(len(rows), *like.shape[1:])


def _own_part(gradient: Tensor, lengths: Sequence[int], rank: int) -> Tensor:
    """The rows of this process in the sum over processes: half of the traffic of a whole sum."""
    longest = max(lengths)
    if min(lengths) == longest:
        sent = gradient.contiguous()
    else:
        sent = torch.cat([_lengthened(part, longest) for part in gradient.split(lengths)])
    own = gradient.new_empty(longest, *gradient.shape[1:])
    _reduce_scatter(own, sent)
    return own[: lengths[rank]]


def _lengthened(rows: Tensor, length: int) -> Tensor:
    """``rows`` (N, …), with zeros up to ``length``; contiguous."""
    if len(rows) == length:
        return rows.contiguous()
    padded = rows.new_zeros(length, *rows.shape[1:])
    padded[: len(rows)] = rows
    return padded


def _cut(parts: Tensor, lengths: Sequence[int]) -> Tensor:
    """The first ``lengths[i]`` rows of each of the equal parts, joined."""
    longest = max(lengths)
    if min(lengths) == longest:
        return parts
    split = parts.split(longest) if longest else [parts] * len(lengths)
    return torch.cat([part[:n] for part, n in zip(split, lengths, strict=True)])
