"""Logits of the labelled class against all other classes. Labels may contain void.

A label outside of 0 … K−1 is void. Nothing here indexes with labels, so an ignore index of 255 or
−100 cannot cause a device-side assertion: labels are compared, not scattered.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from segkd.ops.masked import position_mask
from segkd.ops.softmax_kl import HUGE


def has_class(labels: Tensor, logits: Tensor) -> Tensor:
    """Whether each label is one of the K classes.

    Args:
        labels: (B, h, w) int64.
        logits: (B, K, h, w); only their shape is used.

    Returns:
        (B, h, w) bool.

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


def labelled_mask(labels: Tensor, logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """``has_class``, restricted to valid positions.

    Args:
        labels: (B, h, w) int64.
        logits: (B, K, h, w); only their shape is used.
        mask: (B, h, w) bool, True where positions are valid; None: all.

    Returns:
        (B, h, w) bool.

    Raises:
        ValueError: labels or mask, and logits differ in size.
    """
    labelled = has_class(labels, logits)
    return labelled if mask is None else position_mask(logits, mask) & labelled


def target_map(labels: Tensor, classes: int) -> Tensor:
    """One-hot labels: (B, h, w) -> (B, K, h, w) bool; all False at void positions."""
    return labels.unsqueeze(1) == torch.arange(classes, device=labels.device)[:, None, None]


def target_and_rest(logits: Tensor, target: Tensor) -> Tensor:
    """Binary logits of the target class against the rest.

    Their softmax over dim 1 is (p_y, 1 − p_y). The second is the logsumexp of all other logits,
    so log(1 − p_y) stays finite where 1 − p_y itself is rounded to 0.

    Args:
        logits: (B, K, h, w) with K of 2 or more, already divided by a temperature.
        target: (B, K, h, w) bool from ``target_map``.

    Returns:
        (B, 2, h, w); finite but meaningless at void positions.
    """
    # With exact log-probabilities, -inf minus -inf would be NaN.
    return _TargetAndRest.apply(logits.clamp(-HUGE, HUGE), target)


class _TargetAndRest(torch.autograd.Function):
    """The gradient of a logsumexp is a softmax; only that is kept, in one tensor."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        others = logits.masked_fill(target, -torch.inf)
        log_q = others.log_softmax(1)
        own = logits.masked_fill(~target, 0).sum(1)
        # z − log q is the logsumexp at each class but the target. At the largest nothing cancels.
        rest = others.amax(1) - log_q.amax(1)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(log_q.exp_(), target)
        return torch.stack([own, rest], dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        q, target = ctx.saved_tensors
        own, rest = upstream.unsqueeze(2).unbind(1)
        return torch.where(target, own, q * rest), None
