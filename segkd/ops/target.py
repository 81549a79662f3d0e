"""Class logits seen from the label: the target class against all others. Void labels may stay.

A label outside of 0 … K−1 is no class. Nothing here indexes with labels, so an ignore index of
255 or −100 can stop no device: labels are compared, not scattered.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from segkd.ops.softmax_kl import HUGE


def has_class(labels: Tensor, logits: Tensor) -> Tensor:
    """(B, h, w) bool: the label is one of the K classes of logits (B, K, h, w).

    Raises:
        ValueError: labels and logits differ in size.
    """
    expected = (logits.shape[0], *logits.shape[-2:])
    if labels.shape != expected:
        raise ValueError(
            f"the labels have shape {tuple(labels.shape)}, expected {expected}: images and the "
            "smaller size of the logits. Take them at that size by nearest neighbour"
        )
    return (labels >= 0) & (labels < logits.shape[1])


def target_map(labels: Tensor, classes: int) -> Tensor:
    """(B, h, w) labels -> (B, K, h, w) bool, True at the label's class; void has no True."""
    return labels.unsqueeze(1) == torch.arange(classes, device=labels.device)[:, None, None]


def target_and_rest(logits: Tensor, target: Tensor) -> Tensor:
    """Logits of the question "is it the target class?", which has two answers.

    Their softmax over dim 1 is (p_y, 1 − p_y). The second is the logsumexp of all other logits,
    so log(1 − p_y) stays finite where 1 − p_y itself is rounded to 0.

    Args:
        logits: (B, K, h, w) with K of 2 or more, already divided by a temperature.
        target: (B, K, h, w) bool of ``target_map``.

    Returns:
        (B, 2, h, w). Where no class is the target the values are finite and mean nothing.
    """
    # Of exact log-probabilities -inf less -inf would be NaN.
    return _TargetAndRest.apply(logits.clamp(-HUGE, HUGE), target)


class _TargetAndRest(torch.autograd.Function):
    """The gradient of a logsumexp is a softmax; only that is kept, in one tensor."""

    @staticmethod
    def forward(ctx, logits, target):
        log_q = logits.masked_fill(target, -torch.inf).log_softmax(1)
        own = logits.masked_fill(~target, 0).sum(1)
        # z − log q is the logsumexp at each class but the target: at class 0, or else at 1.
        first, second = (logits[:, k] - log_q[:, k] for k in (0, 1))
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(log_q.exp_(), target)
        return torch.stack([own, torch.where(target[:, 0], second, first)], dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        q, target = ctx.saved_tensors
        own, rest = upstream.unsqueeze(2).unbind(1)
        return torch.where(target, own, q * rest), None
