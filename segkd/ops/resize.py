"""Brings maps to one size: the element-wise smallest one, by averaging, never up."""

import torch
import torch.nn.functional as F
from torch import Tensor


def common_size(*maps: Tensor) -> tuple[int, int]:
    """The element-wise smallest (h, w) of (B, C, h, w) tensors."""
    return min(m.shape[-2] for m in maps), min(m.shape[-1] for m in maps)


def match_sizes(*maps: Tensor) -> tuple[Tensor, ...]:
    """Reduces all to ``common_size`` with ``adaptive_avg_pool2d``; that size passes unchanged.

    Args:
        maps: (B, C_i, h_i, w_i) each, e.g. of student and teacher.

    Returns:
        (B, C_i, h, w) each; half types are raised to float32.
    """
    size = common_size(*maps)
    raised = (m.to(torch.promote_types(m.dtype, torch.float32)) for m in maps)
    return tuple(m if m.shape[-2:] == size else F.adaptive_avg_pool2d(m, size) for m in raised)
