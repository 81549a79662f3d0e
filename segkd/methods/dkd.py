"""Decoupled knowledge distillation: whether it is the class, apart from which other one it is.

Zhao, Cui, Song, Qiu, Liang: Decoupled Knowledge Distillation. CVPR 2022, arXiv 2203.08679.

    L = mean over valid pixels of T² · (w_1 · KL(b_t ‖ b_s) + w_2 · KL(q_t ‖ q_s))
    b = (p_y, 1 − p_y),   p = softmax(z / T),   q = softmax(z / T) over all classes but the label y

In KD the second KL has the factor 1 − p_t,y, which is small wherever the teacher is sure; here it
is free. The paper takes w = (1, 8), T = 4 and a warm-up on CIFAR-100, and (1, 0.5), T = 1 on
ImageNet. The latter is our default: nearly all pixels of a street are easy, and a large w_2 weighs
the noise among their unlikely classes.

Taps: the logits of both at head resolution, and labels; pixels without a label are left out.
Public codes take the logarithm of 1 − p_y, which is −inf for saturated logits, and push the
label's logit down by 1000 instead of leaving it out; here both are logsumexps over what remains.
With two classes one remains, so KL(q_t ‖ q_s) and its gradient are 0.
"""

from typing import ClassVar

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from segkd.methods.base import Context, Conversion, Method, MethodConfig, Needs, Weight
from segkd.ops.resize import common_size, match_sizes
from segkd.ops.softmax_kl import softmax_kl
from segkd.ops.target import has_class, target_and_rest, target_map
from segkd.structures import Batch, Outputs, Term


def dkd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    labels: Tensor,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    target_weight: float = 1.0,
    nontarget_weight: float = 0.5,
) -> Tensor:
    """Mean over valid pixels of T² · (w_1 · KL of target against rest + w_2 · KL within the rest).

    Args:
        student: logits (B, K, h, w).
        teacher: logits or log-probabilities (B, K, h', w'); without gradient.
        labels: (B, h, w) int64 at the smaller of both sizes; any value outside of 0 … K−1 is void.
        mask: (B, h, w) bool, True where pixels are valid; None: all. Void pixels never count.
        temperature: T.
        target_weight: w_1, alpha in the paper.
        nontarget_weight: w_2, beta in the paper.

    Returns:
        A scalar, float32 or wider; 0 with a graph if no pixel counts.
    """
    student, teacher = match_sizes(student, teacher, mask=mask)
    mask = _counted(student, labels, mask)
    target, nontarget = _terms(student, teacher, labels, mask, temperature)
    return target_weight * target + nontarget_weight * nontarget


class DKD(Method):
    name = "dkd"
    kind = "response"
    needs = Needs(student=("logits",), teacher=("logits",), labels=True, accepts_log_prob=True)
    paper = "Zhao et al.: Decoupled Knowledge Distillation, arXiv 2203.08679"
    year = 2022
    equation = "T² · mean_pixels (w_1 KL((p_y, 1−p_y)_t ‖ …_s) + w_2 KL(q_t ‖ q_s)), q: without y"
    cost = "two softmaxes over the logits; two tensors of their size are kept for backward"
    default_weights: ClassVar = {"target": 1.0, "nontarget": 0.5}
    conversions: ClassVar = {
        "mdistiller CIFAR-100": Conversion(1, note="T 4; weights: target 1, nontarget 8; warmup"),
        "mdistiller ImageNet": Conversion(1, note="T 1; weights: target 1, nontarget 0.5"),
        "mmrazor": Conversion(1, note="its default, `batchmean`; `mean` and `sum` are N·h·w of it"),
    }

    class Config(MethodConfig):
        weight: Weight = Field(0.5, description="factor of all terms; see docs/weights.md")
        temperature: PositiveFloat = Field(1.0, description="T; 1 on ImageNet, 4 on CIFAR-100")

    def loss(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, context: Context
    ) -> dict[str, Term]:
        size = common_size(student.logits, teacher.logits)
        labels = context.labels_at(*size)
        valid = context.mask_at(*size)
        maps = match_sizes(student.logits, teacher.logits, mask=valid)
        mask = _counted(maps[0], labels, valid)
        target, nontarget = _terms(*maps, labels, mask, self.config.temperature)
        count = mask.sum(dtype=torch.float64)
        return {"target": Term(target, count), "nontarget": Term(nontarget, count)}


def _counted(student: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
    """(B, h, w) bool: valid and labelled."""
    labelled = has_class(labels, student)
    return labelled if mask is None else mask & labelled


def _terms(
    student: Tensor, teacher: Tensor, labels: Tensor, mask: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Both KLs, each the mean over ``mask`` with its T²."""
    target, weight = target_map(labels, student.shape[1]), mask.unsqueeze(1)
    binary_s, binary_t = (target_and_rest(z / temperature, target) for z in (student, teacher))
    decision = softmax_kl(binary_s, binary_t.detach(), weight, dim=1) * temperature**2
    among = softmax_kl(student, teacher, weight, dim=1, keep=~target, temperature=temperature)
    pixels = mask.sum().clamp(min=1)
    return decision / pixels, among / pixels
