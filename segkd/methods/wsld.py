"""Weighted soft labels: pixels that are harder for the student than for the teacher weigh more.

Zhou, Song, Chen, Zhou, Wang, Yuan, Zhang: Rethinking Soft Labels for Knowledge Distillation: A
Bias-Variance Tradeoff Perspective. ICLR 2021, arXiv 2102.00650.

    L = T² · mean over valid pixels of v · KL(p_t ‖ p_s),   p = softmax(z / T) over classes
    v = 1 − exp(−CE(z_s, y) / CE(z_t, y)), without gradient, at T = 1 and for the label y

Taps: the logits of both at head resolution, and labels. Void pixels are excluded from the mean; if
``mask: not_padding`` includes them they have v = 1, since there is no label to compare with.
Public code takes the cross-entropy Σ p_t log p_s instead of the KL: v has no gradient, so the
student's gradient is the same, and the value here is 0 where both agree.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat
from torch import Tensor

from segkd.methods.base import Context, Conversion, Method, MethodConfig, Needs, Weight
from segkd.ops.masked import position_mask
from segkd.ops.resize import common_size, match_sizes
from segkd.ops.softmax_kl import softmax_kl
from segkd.ops.target import has_class, target_and_rest, target_map
from segkd.structures import Batch, Outputs, Term

_EPS = 1e-7  # as in public code: no division by 0 for a teacher with probability 1


def wsld_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    labels: Tensor,
    mask: Tensor | None = None,
    temperature: float = 2.0,
    parity: bool = False,
) -> Tensor:
    """Mean over valid pixels of T² · v · KL(teacher ‖ student), v of the module's docstring.

    Args:
        student: logits (B, K, h, w).
        teacher: logits or log-probabilities (B, K, h', w'); detached.
        labels: (B, h, w) int64 at the smaller of both sizes; any value outside of 0 … K−1 is void.
        mask: (B, h, w) bool, True where pixels are valid; void pixels in it have v = 1. None: all
            pixels that are not void.
        temperature: T of the KL; v is always taken at 1.
        parity: the public code's value, with the cross-entropy instead of the KL.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no pixel is valid.

    Raises:
        ValueError: labels or mask have another shape, or the classes differ.
    """
    student, teacher = match_sizes(student, teacher, mask=mask)
    labelled = has_class(labels, student)
    mask = labelled if mask is None else position_mask(student, mask)
    target = target_map(labels, student.shape[1])
    own, theirs = (_cross_entropy(logits.detach(), target) for logits in (student, teacher))
    weight = (-torch.expm1(-own / (theirs + _EPS))).masked_fill_(~labelled, 1) * mask
    total = softmax_kl(student, teacher, weight.unsqueeze(1), dim=1, temperature=temperature)
    if parity:
        entropy = torch.special.entr((teacher.to(total.dtype) / temperature).softmax(1)).sum(1)
        total = total + temperature**2 * (weight * entropy.detach()).sum()
    return total / mask.sum().clamp(min=1)


class WSLDConfig(MethodConfig):
    """Keys of the method ``wsld``."""

    weight: Weight = Field(0.5, description="factor of all terms; see docs/weights.md")
    temperature: PositiveFloat = Field(2.0, description="T of the softened classes")
    parity: bool = Field(False, description="the cross-entropy of public codes, not the KL")


class WSLD(Method[WSLDConfig]):
    """Term ``wsld``, a mean over valid pixels."""

    name = "wsld"
    kind = "response"
    paper_weight = 2.5
    needs = Needs(student=("logits",), teacher=("logits",), labels=True, accepts_log_prob=True)
    paper = "Zhou et al.: Rethinking Soft Labels for Knowledge Distillation, arXiv 2102.00650"
    year = 2021
    equation = "T² · mean_pixels (1 − exp(−CE(z_s, y) / CE(z_t, y))) · KL(p_t ‖ p_s)"
    cost = "KD, and a logsumexp of both logits; one tensor of their size is kept for backward"
    conversions: ClassVar = {
        "WSLD, mmrazor": Conversion(2.5, note="T 2; its value adds v · entropy: `parity`"),
    }

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        size = common_size(student.logits, teacher.logits)
        mask = context.mask_at(*size)
        value = wsld_loss(
            student.logits,
            teacher.logits,
            labels=context.labels_at(*size),
            mask=mask,
            temperature=self.config.temperature,
            parity=self.config.parity,
        )
        return {"wsld": Term(value, mask.sum(dtype=torch.float64))}


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """(B, h, w); small values keep the digits that log_softmax at the label would lose."""
    own, rest = target_and_rest(logits, target).unbind(1)
    return F.softplus(rest - own)
