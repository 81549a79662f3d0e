"""Kullback-Leibler divergence between two softmaxes, with its gradient in closed form.

The gradient of T²·KL(softmax(t/T) ‖ softmax(s/T)) in s is T·(softmax(s/T) − softmax(t/T)). It is
made together with the value, so one tensor waits for backward instead of autograd's four.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Working set of one pass in elements: small enough to stay in a CPU's cache while it is reused,
# large enough that a GPU is busy with it.
_BLOCK = 2**20


def softmax_kl(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor,
    *,
    dim: int,
    keep: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Σ weight · T² · KL(teacher ‖ student) over all rows; a row lies along ``dim``.

    Half types are raised to float32. Value and gradient are finite for saturated logits as well.
    The teacher gets no gradient; the student's is not differentiable again.

    Args:
        student: logits of any shape, or log-probabilities.
        teacher: the same shape.
        weight: a factor or a bool per row, broadcastable to the shape with size 1 along ``dim``.
        dim: axis of the distributions, not the first.
        keep: bool, broadcastable to the shape; False entries are no part of their distribution.
        temperature: T.

    Raises:
        ValueError: the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"softmax_kl: student has shape {tuple(student.shape)}, teacher {tuple(teacher.shape)}."
            " Align channels with segkd.modules.adapter.channel_adapter and sizes with "
            "segkd.ops.resize.match_sizes first"
        )
    return _SoftmaxKL.apply(student, teacher, weight, keep, dim, temperature)


class _SoftmaxKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student, teacher, weight, keep, dim, temperature):
        dtype = torch.promote_types(
            torch.promote_types(student.dtype, teacher.dtype), torch.float32
        )
        needs_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(student, dtype=dtype)
        weight = weight.to(dtype).expand(_row_shape(student, dim))
        keep = None if keep is None else keep.expand(student.shape)
        value = torch.zeros((), dtype=dtype, device=student.device)
        images = max(1, _BLOCK * len(student) // max(1, student.numel()))
        for start in range(0, len(student), images):
            part = slice(start, start + images)
            kept = None if keep is None else keep[part]
            log_s = _log_softmax(student[part].to(dtype), kept, dim, temperature)
            log_t = _log_softmax(teacher[part].to(dtype), kept, dim, temperature)
            p_t = log_t.exp()
            rows = log_t.sub_(log_s).mul_(p_t).sum(dim, keepdim=True)
            value += (rows * weight[part]).sum()
            if needs_gradient:
                difference = log_s.exp_().sub_(p_t)
                torch.mul(difference, weight[part] * temperature, out=gradient[part])
        if needs_gradient:
            ctx.save_for_backward(gradient)
            ctx.dtype = student.dtype
        return value * temperature**2

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream).to(ctx.dtype), None, None, None, None, None


def _log_softmax(logits: Tensor, keep: Tensor | None, dim: int, temperature: float) -> Tensor:
    if temperature != 1.0:
        logits = logits / temperature
    if keep is not None:
        # Half of the lowest number instead of −inf: a row without any kept entry stays finite.
        logits = logits.masked_fill(~keep, torch.finfo(logits.dtype).min / 2)
    return logits.log_softmax(dim)


def _row_shape(logits: Tensor, dim: int) -> list[int]:
    shape = list(logits.shape)
    shape[dim] = 1
    return shape
