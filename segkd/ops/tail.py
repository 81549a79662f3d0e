"""A teacher that names its most probable classes only: the tail is one bucket.

With R = 1 − Σ_named p_t, the divergence whose tail is one bucket is

    Σ_named p_t log(p_t / p_s) + R log(R / Σ_others p_s).

Dividing the named probabilities by their sum, or spreading R evenly over the other classes, changes
what the student is pulled to. Here R is spread as the student itself spreads its probability over
the others: then the plain divergence, and its gradient, are those of the bucket, at any temperature
and for any method that takes log-probabilities.
"""

from dataclasses import replace

import torch
from torch import Tensor

from segkd.ops.resize import match_sizes
from segkd.structures import Outputs

_FLOOR = 1e-8  # of probabilities, before the logarithm


def with_tail(teacher: Outputs, student: Outputs) -> Outputs:
    """The outputs of a teacher, with its tail spread as the student's; others stay as they are.

    Args:
        teacher: with or without ``tail``.
        student: its logits are not given a gradient.
    """
    if teacher.tail is None:
        return teacher
    mine, theirs, tail = match_sizes(
        student.logits.detach(), teacher.logits.detach().exp(), teacher.tail
    )
    shares = spread_tail(theirs, tail, mine)
    return replace(teacher, logits=shares.clamp_min(_FLOOR).log(), tail=None)


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
    even = torch.where(whole > 0, tail / whole.clamp_min(_FLOOR), 0)
    total = wanted.sum(1, keepdim=True)
    share = torch.where(total > _FLOOR * whole, wanted / total.clamp_min(1e-30), even)
    return probabilities - tail + whole * share
