"""Log-odds of classes against all others: what of logits a softmax over classes can see."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def log_odds(logits: Tensor) -> Tensor:
    """log p_k / (1 − p_k) of each class but the first: (B, K, h, w) -> (B, K−1, h, w).

    It is z_k minus the logsumexp of all other logits, finite for saturated logits as well, and
    the same for log-probabilities. Two tensors of the input's size wait for backward, whatever K;
    the gradient is not differentiable again.

    Raises:
        ValueError: fewer than two classes.
    """
    if logits.shape[1] < 2:
        raise ValueError(f"log_odds: got {logits.shape[1]} class, expected 2 or more")
    return _LogOdds.apply(logits)


class _LogOdds(torch.autograd.Function):
    """One exponential of all logits serves every class but the largest of each pixel.

    Without a smaller class the sum of exponentials keeps its largest part, so it may be taken off
    the whole sum. Without the largest the difference would cancel: that one is summed anew.
    """

    @staticmethod
    def forward(ctx, logits):
        top, index = logits.max(1, keepdim=True)
        parts = (logits - top).exp_()
        rest = parts.sum(1, keepdim=True).sub(parts).log_().add_(top)
        rest.scatter_(1, index, logits.scatter(1, index, -torch.inf).logsumexp(1, keepdim=True))
        ctx.save_for_backward(logits, rest)
        return (logits - rest)[:, 1:]

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        logits, rest = ctx.saved_tensors
        top, index = logits.max(1, keepdim=True)
        gradient = torch.cat([torch.zeros_like(upstream[:, :1]), upstream], 1)
        # Class j has the share exp(z_j − rest_k) of what is not class k.
        others = logits.scatter(1, index, -torch.inf).sub_(rest.gather(1, index)).exp_()
        others.mul_(gradient.gather(1, index))
        smaller = (top - rest).exp_().mul_(gradient).scatter_(1, index, 0)
        parts = (logits - top).exp_()
        return gradient - others - parts * (smaller.sum(1, keepdim=True) - smaller)
