"""Teacher-free distillation, regularised form: a hand-designed instead of a trained teacher.

Yuan, Tay, Li, Wang, Feng: Revisiting Knowledge Distillation via Label Smoothing Regularization.
CVPR 2020, arXiv 1909.11723.

    L = T² · mean over valid pixels of KL(u_T ‖ p_s),   p_s = softmax(z / T) over classes
    u = a for the label, (1 − a) / (K − 1) for each other class,   u_T = softmax(log u / T)

The paper adds (1 − w) of the cross-entropy and w = 0.1 of this. It pulls the gap between the
label's logit and the others to log(a (K − 1) / (1 − a)), which is 7.5 at 19 classes and a = 0.99.

Taps: the student's logits at head resolution, and labels; pixels without a label are skipped.
The public code (``parity: true``) tempers the probabilities themselves, softmax(u / T), and keeps
the student at T = 1, without T². At T = 20 and 19 classes that target is 0.0552 for the label and
0.0525 for the others: nearly uniform, so it is label smoothing, scaled up by a factor of 100.
The paper's other form, a trained copy of the student as the teacher, is ``kd`` in a chain of two
runs: configs/streets/tf_kd_self.yaml.
"""

import math
from typing import ClassVar

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from segkd.errors import ConfigError
from segkd.methods.base import (
    BuildContext,
    Context,
    Conversion,
    MethodConfig,
    Needs,
    SelfMethod,
    Weight,
)
from segkd.ops.softmax_kl import mean_softmax_kl
from segkd.ops.target import labelled_mask, target_map
from segkd.structures import Batch, Outputs, Term


def tf_kd_loss(
    student: Tensor,
    *,
    labels: Tensor,
    mask: Tensor | None = None,
    temperature: float = 20.0,
    target_probability: float = 0.99,
    parity: bool = False,
) -> Tensor:
    """Mean over valid pixels of T² · KL(designed teacher ‖ student) over the classes.

    Args:
        student: logits (B, K, h, w).
        labels: (B, h, w) int64; any value outside of 0 … K−1 is void.
        mask: (B, h, w) bool, True where pixels are valid; None: all. Void pixels never count.
        temperature: T.
        target_probability: a, the designed teacher's probability of the label, in (0, 1).
        parity: the public code's KL(softmax(u / T) ‖ softmax(z)), without T².

    Returns:
        A scalar, float32 or wider; a differentiable zero if no pixel counts.

    Raises:
        ValueError: labels or mask have another shape.
    """
    mask = labelled_mask(labels, student, mask)
    classes = student.shape[1]
    own, other = target_probability, (1 - target_probability) / (classes - 1)
    if parity:
        own, other, temperature = own / temperature, other / temperature, 1.0
    else:
        own, other = math.log(own), math.log(other)
    dtype = torch.promote_types(student.dtype, torch.float32)
    designed = torch.full_like(student, other, dtype=dtype, requires_grad=False)
    designed.masked_fill_(target_map(labels, classes), own)
    return mean_softmax_kl(student, designed, mask, temperature=temperature)


class TfKDConfig(MethodConfig):
    """Keys of the method ``tf_kd``."""

    weight: Weight = Field(0.3, description="factor of all terms; see docs/weights.md")
    temperature: PositiveFloat = Field(20.0, description="T of both softmaxes")
    target_probability: float = Field(
        0.99, gt=0, lt=1, description="a, what the designed teacher gives to the label"
    )
    parity: bool = Field(False, description="temper probabilities, as the public code does")


class TfKD(SelfMethod[TfKDConfig]):
    """Term ``tf_kd``, a mean over labelled pixels."""

    name = "tf_kd"
    kind = "self"
    paper_weight = 0.1
    needs = Needs(student=("logits",), labels=True)
    paper = "Yuan et al.: Revisiting Knowledge Distillation via Label Smoothing, arXiv 1909.11723"
    year = 2020
    equation = "T² · mean_pixels KL(softmax(log u / T) ‖ p_s), u = a on the label, rest uniform"
    cost = "three passes over the logits; one tensor of their size is kept for backward"
    exempt: ClassVar = {"mask_not_padding": "the designed teacher depends on the label"}
    conversions: ClassVar = {
        "paper": Conversion(0.1, note="T 20; task weight 0.9; its self form: `segkd explain kd`"),
        "Tf-KD reg": Conversion(10, {"K": -1}, "parity; T 20; task weight 0.9"),
    }

    def build(self, spec: BuildContext) -> None:
        given = self.config.target_probability
        if given * spec.num_classes <= 1:
            raise ConfigError(
                f"tf_kd: target_probability={given:g} is at or below chance at "
                f"{spec.num_classes} classes, so the designed teacher would push the student away "
                f"from the label. Set it above {1 / spec.num_classes:.3g}, e.g. "
                "target_probability=0.99"
            )

    def self_loss(self, student: Outputs, batch: Batch, context: Context) -> dict[str, Term]:
        size, config = student.logits.shape[-2:], self.config
        labels = context.labels_at(*size)
        mask = labelled_mask(labels, student.logits, context.mask_at(*size))
        value = tf_kd_loss(
            student.logits,
            labels=labels,
            mask=mask,
            temperature=config.temperature,
            target_probability=config.target_probability,
            parity=config.parity,
        )
        return {"tf_kd": Term(value, mask.sum(dtype=torch.float64))}
