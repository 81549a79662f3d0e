"""Decoupled knowledge distillation: the target class and the other classes as separate terms.

Zhao, Cui, Song, Qiu, Liang: Decoupled Knowledge Distillation. CVPR 2022, arXiv 2203.08679.

    L = mean over valid pixels of T² · (w_1 · KL(b_t ‖ b_s) + w_2 · KL(q_t ‖ q_s))
    b = (p_y, 1 − p_y),   p = softmax(z / T),   q = softmax(z / T) over all classes but the label y

In KD the second KL has the factor 1 − p_t,y, which is small wherever the teacher is confident; here
its weight is free. The paper uses w = (1, 8), T = 4 and a warm-up on CIFAR-100, and (1, 0.5), T = 1
on ImageNet. The latter is our default: nearly all pixels of a street scene are easy, and a large
w_2 amplifies the noise among their unlikely classes.

Taps: the logits of both at head resolution, and labels; pixels without a label are skipped.
Public code takes the logarithm of 1 − p_y, which is −inf for saturated logits, and lowers the
label's logit by 1000 instead of excluding it; here both are logsumexps over the other classes.
With two classes one remains, so KL(q_t ‖ q_s) and its gradient are 0.
``student_temperature`` and ``standardize``: see ``methods.shared.softening``.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from segkd.methods.base import BuildContext, Context, Conversion, Method, Needs, Weight
from segkd.methods.shared.softening import SofteningKeys, require_three, softened
from segkd.ops.resize import common_size, match_sizes
from segkd.ops.softmax_kl import softmax_kl
from segkd.ops.target import labelled_mask, target_and_rest, target_map
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
    student_temperature: float | None = None,
    standardize: bool = False,
    unknown: tuple[int, ...] = (),
) -> Tensor:
    """Mean over valid pixels of T² · (w_1 · KL of target against rest + w_2 · KL within the rest).

    Args:
        student: logits (B, K, h, w).
        teacher: logits or log-probabilities (B, K, h', w'); detached.
        labels: (B, h, w) int64 at the smaller of both sizes; any value outside of 0 … K−1 is void.
        mask: (B, h, w) bool, True where pixels are valid; None: all. Void pixels never count.
        temperature: T.
        target_weight: w_1, alpha in the paper.
        nontarget_weight: w_2, beta in the paper.
        student_temperature: T of the student's softmax, and of T²; None: ``temperature``.
        standardize: compares z-scores of the logits over the classes of a pixel.
        unknown: ids of classes that are excluded on both sides; no label is one of them.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no pixel counts.

    Raises:
        ValueError: labels or mask have another shape, or the classes differ.
    """
    student, teacher = match_sizes(student, teacher, mask=mask)
    mask = labelled_mask(labels, student, mask)
    student, teacher, common = softened(
        student,
        teacher.detach(),
        temperature=temperature,
        student_temperature=student_temperature,
        standardize=standardize,
        unknown=unknown,
    )
    target, nontarget = _terms(student, teacher, labels, mask, common)
    return target_weight * target + nontarget_weight * nontarget


class DKDConfig(SofteningKeys):
    """Keys of the method ``dkd``."""

    weight: Weight = Field(0.5, description="factor of all terms; see docs/weights.md")
    temperature: PositiveFloat = Field(1.0, description="T; 1 on ImageNet, 4 on CIFAR-100")


class DKD(Method[DKDConfig]):
    """Terms ``target`` and ``nontarget``, means over labelled pixels."""

    name = "dkd"
    kind = "response"
    needs = Needs(student=("logits",), teacher=("logits",), labels=True, accepts_log_prob=True)
    paper = "Zhao et al.: Decoupled Knowledge Distillation, arXiv 2203.08679"
    year = 2022
    equation = "T² · mean_pixels (w_1 KL((p_y, 1−p_y)_t ‖ …_s) + w_2 KL(q_t ‖ q_s)), q: without y"
    cost = "two softmaxes over the logits; two tensors of their size are kept for backward"
    default_weights: Mapping[str, float] = {"target": 1.0, "nontarget": 0.5}
    exempt: ClassVar = {"mask_not_padding": "a pixel without a label has no target class"}
    conversions: ClassVar = {
        "mdistiller CIFAR-100": Conversion(1, note="T 4; weights: target 1, nontarget 8; warmup"),
        "mdistiller ImageNet": Conversion(1, note="T 1; weights: target 1, nontarget 0.5"),
        "mmrazor": Conversion(1, note="its default, `batchmean`; `mean` and `sum` are N·h·w of it"),
    }

    def build(self, spec: BuildContext) -> None:
        if self.config.standardize:
            require_three(self.name, spec.num_classes)

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        config = self.config
        if config.standardize:
            require_three(self.name, student.logits.shape[1] - len(teacher.unknown), known=True)
        size = common_size(student.logits, teacher.logits)
        labels = context.labels_at(*size)
        valid = context.mask_at(*size)
        own, other = match_sizes(student.logits, teacher.logits, mask=valid)
        mask = labelled_mask(labels, own, valid)
        own, other, temperature = softened(
            own,
            other.detach(),
            temperature=config.temperature,
            student_temperature=config.student_temperature,
            standardize=config.standardize,
            unknown=teacher.unknown,
        )
        target, nontarget = _terms(own, other, labels, mask, temperature)
        count = mask.sum(dtype=torch.float64)
        return {"target": Term(target, count), "nontarget": Term(nontarget, count)}


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
