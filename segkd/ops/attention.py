"""Where a network looks: one value per position from all of its channels."""

import math

import torch
from torch import Tensor

from segkd.ops.squared_distance import squared_norm


def attention_map(features: Tensor, over_channels: str, power: float) -> Tensor:
    """Σ_c |F_c|^p, or max_c |F_c|^p, without a copy of the features.

    Args:
        features: (B, C, h, w).
        over_channels: ``sum`` or ``max``.
        power: p.

    Returns:
        (B, 1, h, w); half types are raised to float32.
    """
    if over_channels == "sum" and power == 2:
        return squared_norm(features).unsqueeze(1)
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    order = math.inf if over_channels == "max" else power
    return torch.linalg.vector_norm(features, order, dim=1, keepdim=True).pow(power)
