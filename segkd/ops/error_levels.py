"""How wrong an answer is: ranks of the right one, and which of the wrong ones are kept."""

from collections.abc import Callable

import torch
from torch import Tensor


@torch.no_grad()
def error_levels(similarity: Tensor) -> Tensor:
    """Number of wrong nodes that are more similar than the right one, (V·M,) int64, by row.

    Args:
        similarity: (V·M, M); the right node of row i is i modulo M. Differences of rounding do
            not count: the same node twice has one similarity.
    """
    nodes = max(1, similarity.shape[1])
    right = torch.arange(len(similarity), device=similarity.device) % nodes
    own = similarity.gather(1, right.unsqueeze(1))
    return (similarity - own > 16 * torch.finfo(similarity.dtype).eps).sum(1)


@torch.no_grad()
def kept_shares(
    errors: Tensor,
    keep: float,
    *,
    levels: int,
    mask: Tensor | None = None,
    all_sum: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """How much of each item is kept: 1 without an error, of the others the least wrong first.

    Of N items with errors ``keep``·N are kept. Items with the same number of errors as the last of
    them share what is left.

    Args:
        errors: error levels, int64 of any shape, 0 … levels − 1.
        keep: share of the wrong items that is kept.
        levels: number of error levels.
        mask: bool of the same shape; False: not counted, and not kept. None: all count.
        all_sum: sums over processes.

    Returns:
        Shares in 0 … 1, float64, of the shape of ``errors``.
    """
    counted = torch.ones_like(errors, dtype=torch.float64) if mask is None else mask.double()
    wrong = torch.zeros(levels, dtype=torch.float64, device=errors.device)
    wrong = all_sum(wrong.index_add_(0, errors.flatten(), (counted * (errors > 0)).flatten()))
    before = wrong.cumsum(0) - wrong
    share = ((keep * wrong.sum() - before) / wrong.clamp(min=1)).clamp(0, 1)
    return counted * torch.where(errors > 0, share[errors], 1.0)
