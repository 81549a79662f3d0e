"""Brings two maps to one size: the element-wise smaller one, by averaging, never up."""

import torch
import torch.nn.functional as F
from torch import Tensor


def common_size(student: Tensor, teacher: Tensor) -> tuple[int, int]:
    """The element-wise smaller (h, w) of two (B, C, h, w) tensors."""
    (h_s, w_s), (h_t, w_t) = student.shape[-2:], teacher.shape[-2:]
    return min(h_s, h_t), min(w_s, w_t)


def match_sizes(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Reduces both to ``common_size`` with ``adaptive_avg_pool2d``; equal sizes pass unchanged.

    Args:
        student: (B, C_s, h_s, w_s).
        teacher: (B, C_t, h_t, w_t).

    Returns:
        (B, C_s, h, w) and (B, C_t, h, w); half types are raised to float32.
    """
    size = common_size(student, teacher)
    return _reduce(student, size), _reduce(teacher, size)


def _reduce(values: Tensor, size: tuple[int, int]) -> Tensor:
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    return values if values.shape[-2:] == size else F.adaptive_avg_pool2d(values, size)
