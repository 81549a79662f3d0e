"""Logits of a position as z-scores over its classes."""

import torch
from torch import Tensor

from segkd.ops.known import LOW, class_mask

_EPS = 1e-7  # added to the deviation
_FLAT = 1e-6  # of the largest logit: a deviation that may be rounding
_LARGEST = 1e15  # exact log-probabilities are -inf; the square of this is a number in float32


def z_scores(logits: Tensor, unknown: tuple[int, ...] = ()) -> Tensor:
    """(z − mean) / (deviation + 1e-7) over the K classes of each position.

    The deviation is the unbiased one. A constant added to a row changes nothing, so the z-scores of
    log-probabilities are those of the logits. A row without a deviation becomes 0 and gets no
    gradient, instead of a huge one.

    Args:
        logits: (B, K, h, w), or log-probabilities.
        unknown: ids of classes that count in neither mean nor deviation; three others remain.

    Returns:
        (B, K, h, w), float32 or wider; ``known.LOW`` for unknown classes, as in ``restricted``.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits = logits.clamp(-_LARGEST, _LARGEST)
    out = class_mask(unknown, logits.shape[1], logits.device) if unknown else None
    count = logits.shape[1] - len(set(unknown))
    known = logits if out is None else logits.masked_fill(out, 0)
    centred = known - known.sum(1, keepdim=True) / count
    if out is not None:
        centred = centred.masked_fill(out, 0)
    variance = centred.square().sum(1, keepdim=True) / max(1, count - 1)
    largest = known.detach().abs().amax(1, keepdim=True)
    flat = variance.detach() <= (_FLAT * largest).square()
    deviation = variance.masked_fill(flat, 1).sqrt() + _EPS
    scores = (centred / deviation).masked_fill(flat, 0)
    return scores if out is None else scores.masked_fill(out, LOW)


def power_sum(logits: Tensor, power: float, unknown: tuple[int, ...] = ()) -> Tensor:
    """Σ_k p_k^power of each position, p = softmax(z): from 1 to K^(1 − power), for uniform rows.

    Args:
        logits: (B, K, h, w), or log-probabilities.
        power: between 0 and 1; the more even p is, the larger the sum. At 1 it is 1.
        unknown: ids of classes that are left out.

    Returns:
        (B, h, w), float32 or wider.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits = logits.clamp(-_LARGEST, _LARGEST)
    if unknown:
        out = class_mask(unknown, logits.shape[1], logits.device)
        logits = logits.masked_fill(out, -torch.inf)
    return (power * logits.log_softmax(1)).logsumexp(1).exp()
