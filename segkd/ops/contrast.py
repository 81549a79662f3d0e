"""Noise-contrastive estimation with stored negatives, in logistic form: no exponential overflows.

With h(x, y) = exp(x·y / τ) / Z, Z = n · mean of exp(x·y / τ), m negatives out of n stored ones,

    h / (h + m/n) = logistic(x·y / τ − log(m · mean))

so the number n of stored vectors cancels out.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus


def noise_contrast(
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor,
    keep: Tensor | None,
    temperature: float,
    log_mean: Tensor | None = None,
) -> Tensor:
    """Mean over anchors of −log P(its positive is real) − Σ log P(a negative is noise).

    Args:
        anchors: (M, D).
        positives: (M, D), one of each anchor.
        negatives: (Q, D).
        keep: (M, Q) bool, which of them are negatives of which anchor; None: all. Anchors
            without any are left out of the mean.
        temperature: τ.
        log_mean: log of the mean of exp(x·y / τ), see ``log_mean_exp``; None: of these negatives.

    Returns:
        A scalar; 0 with a graph if no anchor has a negative.

    Raises:
        ValueError: shapes that do not fit.
    """
    expected = len(anchors), len(negatives)
    if keep is None:
        keep = torch.ones(expected, dtype=torch.bool, device=anchors.device)
    shapes = [tuple(x.shape) for x in (anchors, positives, negatives, keep)]
    if shapes[0] != shapes[1] or shapes[0][1:] != shapes[2][1:] or shapes[3] != expected:
        raise ValueError(
            "anchors, positives, negatives and keep have shapes {}, {}, {} and {}; expected "
            "(M, D), (M, D), (Q, D) and (M, Q)".format(*shapes)
        )
    with torch.autocast(anchors.device.type, enabled=False):
        positive = (anchors * positives).sum(dim=1) / temperature
        negative = anchors @ negatives.T / temperature
        if log_mean is None:
            log_mean = log_mean_exp(anchors, negatives, keep, temperature)
    count = keep.sum(dim=1)
    shift = log_mean.to(positive.dtype) + count.clamp(min=1).to(positive.dtype).log()
    others = softplus(negative - shift.unsqueeze(1)).masked_fill(~keep, 0).sum(dim=1)
    values = (softplus(shift - positive) + others).masked_fill(count == 0, 0)
    return values.sum() / (count > 0).sum().clamp(min=1)


@torch.no_grad()
def log_mean_exp(anchors: Tensor, negatives: Tensor, keep: Tensor, temperature: float) -> Tensor:
    """Logarithm of the mean of exp(x·y / τ) over anchors and their negatives; 0 without any."""
    with torch.autocast(anchors.device.type, enabled=False):
        kept = (anchors @ negatives.T)[keep] / temperature
    return kept.logsumexp(0) - math.log(len(kept)) if len(kept) else kept.sum()
