"""Class logits seen from the label: the target class against all others. Void labels may stay.

A label outside of 0 … K−1 is no class. Nothing here indexes with labels, so an ignore index of
255 or −100 can stop no device: labels are compared, not scattered.
"""

import torch
from torch import Tensor


def has_class(labels: Tensor, classes: int) -> Tensor:
    """Bool of the same shape: the label is one of 0 … classes − 1."""
    return (labels >= 0) & (labels < classes)


def target_map(labels: Tensor, classes: int) -> Tensor:
    """(B, h, w) labels -> (B, K, h, w) bool, True at the label's class; void has no True."""
    return labels.unsqueeze(1) == torch.arange(classes, device=labels.device)[:, None, None]


def target_and_rest(logits: Tensor, target: Tensor) -> Tensor:
    """Logits of the question "is it the target class?", which has two answers.

    Their softmax over dim 1 is (p_y, 1 − p_y). The second is the logsumexp of all other logits,
    so log(1 − p_y) stays finite where 1 − p_y itself is rounded to 0.

    Args:
        logits: (B, K, h, w), already divided by a temperature.
        target: (B, K, h, w) bool of ``target_map``.

    Returns:
        (B, 2, h, w). Where no class is the target the values are finite and mean nothing.
    """
    own = logits.masked_fill(~target, 0).sum(1)
    rest = logits.masked_fill(target, -torch.inf).logsumexp(1)
    return torch.stack([own, rest], dim=1)
