"""Logits of student and teacher where the teacher cannot know some of the classes.

Probability 0 for a class that a teacher has never seen is no knowledge: it would pull the student
away from it. So both distributions are those over the known classes, p(k) / Σ_known p. Positions
that belong to an unknown class are left out, see ``of_unknown``: among the known ones the teacher
names a wrong class there.
"""

import torch
from torch import Tensor

from segkd.ops.kept import kept

# Log-probability of excluded classes: a number, of which nothing is left at any temperature in use.
LOW = -1e4


def restricted(logits: Tensor, unknown: tuple[int, ...]) -> Tensor:
    """Log-probabilities (B, K, h, w) over the known classes; ``LOW`` for the others.

    Args:
        logits: (B, K, h, w), or log-probabilities. Those of unknown classes get no gradient.
        unknown: ids of classes.
    """
    if not unknown:
        return logits
    out = class_mask(unknown, logits.shape[1], logits.device)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    rest = logits.masked_fill(out, -torch.inf).logsumexp(1, keepdim=True)
    return (logits - rest).masked_fill(out, LOW)


def of_unknown(classes: Tensor, unknown: tuple[int, ...]) -> Tensor:
    """Bool of the same shape: whether a class is an unknown one.

    Args:
        classes: int64, any shape; no class that is void is among the unknown ones.
        unknown: ids of classes, at least one.
    """
    size = max(unknown) + 1
    flags = class_mask(unknown, size, classes.device).flatten()
    return (classes >= 0) & (classes < size) & flags[classes.clamp(0, size - 1)]


@kept
def class_mask(unknown: tuple[int, ...], count: int, device: torch.device) -> Tensor:
    """(1, count, 1, 1) bool: True for the ids in ``unknown``."""
    found = torch.zeros(count, dtype=torch.bool)
    found[list(unknown)] = True
    return found.to(device, non_blocking=True)[None, :, None, None]
