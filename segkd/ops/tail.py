"""A teacher that names its most probable classes only: the tail is one bucket.

With R = 1 − Σ_named p_t, the divergence whose tail is one bucket is

    Σ_named p_t log(p_t / p_s) + R log(R / Σ_others p_s).

Dividing the named probabilities by their sum, or spreading R evenly over the other classes, changes
what the student is pulled to. Here R is spread as the student itself spreads its probability over
the others: then the plain divergence, and its gradient, are those of the bucket, at any temperature
and for any method that takes log-probabilities.
"""

import torch
from torch import Tensor

FLOOR = 1e-8  # of probabilities, before the logarithm


def spread_tail(probabilities: Tensor, tail: Tensor, student: Tensor) -> Tensor:
    """Probabilities (B, K, h, w) whose tail is in the proportions of the student.

    Args:
        probabilities: (B, K, h, w), which include ``tail``.
        tail: (B, K, h, w), the part of ``probabilities`` that was given to no class in particular,
            spread evenly; 0 for named classes.
        student: logits (B, K, h, w).
    """
    whole = tail.sum(1, keepdim=True)
    wanted = tail * (student - student.amax(1, keepdim=True)).exp()
    # A student that is sure of a named class may have no number left for the others.
    even = torch.where(whole > 0, tail / whole.clamp_min(FLOOR), 0)
    total = wanted.sum(1, keepdim=True)
    share = torch.where(total > FLOOR * whole, wanted / total.clamp_min(1e-30), even)
    return probabilities - tail + whole * share
