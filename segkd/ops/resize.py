"""Brings maps to one size: the element-wise smallest one, by averaging, never up."""

import torch
import torch.nn.functional as F
from torch import Tensor


def common_size(*maps: Tensor) -> tuple[int, int]:
    """The element-wise smallest (h, w) of (B, C, h, w) tensors."""
    return min(m.shape[-2] for m in maps), min(m.shape[-1] for m in maps)


def match_sizes(*maps: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
    """Reduces all to ``common_size`` with ``adaptive_avg_pool2d``; that size passes unchanged.

    Args:
        maps: (B, C_i, h_i, w_i) each, e.g. of student and teacher.
        mask: (B, h, w) bool at the common size, True where positions are valid. What stands
            elsewhere becomes 0, so that a NaN there cannot reach a loss by a product with 0.
            None: all maps as they are.

    Returns:
        (B, C_i, h, w) each; half types are raised to float32.
    """
    size = common_size(*maps)
    raised = (m.to(torch.promote_types(m.dtype, torch.float32)) for m in maps)
    matched = (m if m.shape[-2:] == size else F.adaptive_avg_pool2d(m, size) for m in raised)
    if mask is None or mask.shape[1:] != size:  # a wrong shape is told by whoever uses the mask
        return tuple(matched)
    hidden = ~mask.unsqueeze(1)
    return tuple(m.masked_fill(hidden, 0) for m in matched)
