"""Knowledge distillation: the student matches the teacher's class probabilities at each pixel.

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network. NIPS 2014 workshop,
arXiv 1503.02531. Per pixel: Liu et al., Structured Knowledge Distillation, CVPR 2019,
arXiv 1903.04197.

    L = T² · mean over valid pixels of Σ_k p_t log(p_t / p_s),   p = softmax(z / T) over classes

Taps: the logits of both at head resolution; up-sampling them first adds cost and no information.
Public code reduces in four ways (see ``conversions``) and distils crop padding as well. Here it
is the mean over valid pixels, as in CIRKD, so that a weight of 1 means the same for any batch.

``student_temperature`` and ``standardize`` (``methods.shared.softening``) are TTM and LSKD.
``weighting: smoothness`` multiplies each pixel by Σ_k p_t^(1/T), of the teacher's p at T = 1. It is
1 where the teacher is sure and K^(1−1/T) where it is not. With ``student_temperature: 1`` this is
WTTM, of the paper of TTM. The mean is over pixels, not over weights.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from segkd.methods.base import BuildContext, Context, Conversion, Method, Needs
from segkd.methods.shared.softening import SofteningKeys, require_three, softened
from segkd.ops.masked import position_mask
from segkd.ops.resize import common_size, match_sizes
from segkd.ops.softmax_kl import softmax_kl
from segkd.ops.standardize import power_sum
from segkd.structures import Batch, Outputs, Term

Weighting = Literal["none", "smoothness"]


def kd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    student_temperature: float | None = None,
    weighting: Weighting = "none",
    standardize: bool = False,
    unknown: tuple[int, ...] = (),
) -> Tensor:
    """Mean over valid pixels of T² · KL(teacher ‖ student) over the classes.

    Args:
        student: logits (B, K, h, w).
        teacher: logits or log-probabilities (B, K, h', w'); detached.
        mask: (B, h, w) bool at the smaller of both sizes, True where pixels are valid; None: all.
        temperature: T; larger values emphasise the small probabilities.
        student_temperature: T of the student's softmax, and of T²; None: ``temperature``.
        weighting: ``smoothness`` multiplies a pixel by Σ_k p_t^(1/T).
        standardize: compares z-scores of the logits over the classes of a pixel.
        unknown: ids of classes that are excluded on both sides.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no pixel is valid.

    Raises:
        ValueError: the mask has another shape, or the classes differ.
    """
    student, teacher = match_sizes(student, teacher.detach(), mask=mask)
    mask = position_mask(student, mask)
    student, teacher, common = softened(
        student,
        teacher,
        temperature=temperature,
        student_temperature=student_temperature,
        standardize=standardize,
        unknown=unknown,
    )
    weight = mask
    if weighting == "smoothness":  # `common` is the temperature of what was made here
        whole = teacher * (temperature / common)
        weight = mask * power_sum(whole, 1 / temperature, unknown)
    total = softmax_kl(student, teacher, weight.unsqueeze(1), dim=1, temperature=common)
    return total / mask.sum().clamp(min=1)


class KDConfig(SofteningKeys):
    """Keys of the method ``kd``."""

    temperature: PositiveFloat = Field(1.0, description="T; segmentation's gains are at 1")
    weighting: Weighting = Field(
        "none",
        description="smoothness: each pixel is multiplied by Σ_k p_t^(1/T), which is larger where "
        "the teacher is less sure (WTTM with `student_temperature: 1`)",
    )


class KD(Method[KDConfig]):
    """Term ``kd``, a mean over valid pixels."""

    name = "kd"
    kind = "response"
    needs = Needs(student=("logits",), teacher=("logits",), accepts_log_prob=True)
    paper = "Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, arXiv 1503.02531"
    year = 2015
    published = "Cityscapes, PSPNet-R18: 69.10 → 70.51 (SKD's README)"
    equation = "T² · mean_pixels Σ_k p_t log(p_t / p_s), p = softmax(z / T) over classes"
    cost = "three passes over the logits; one tensor of their size is kept for backward"
    conversions: ClassVar = {
        "SKD": Conversion(10, {"N": 1}, "cross-entropy: its value adds the teacher's entropy"),
        "TorchDistiller, IFVD": Conversion(10, {"K": -1, "T": -2}, "T 1 in its recipes"),
        "CIRKD, Af-DCD": Conversion(1),
        "mmrazor KLDivergence": Conversion(1, {"h": 1, "w": 1}, "batchmean sums over positions"),
        "TAKD": Conversion(1, {"K": -1}, "times its lambda, task weight 1 - lambda; T 1 to 20"),
        "Tf-KD self": Conversion(
            0.95, {"K": -1}, "times its multiplier, 1 to 50; task weight 0.05; T 6 to 20"
        ),
        "LSKD": Conversion(9, note="standardize; T 2; of images, on CIFAR-100"),
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
        mask = context.mask_at(*common_size(student.logits, teacher.logits))
        value = kd_loss(
            student.logits,
            teacher.logits,
            mask=mask,
            temperature=config.temperature,
            student_temperature=config.student_temperature,
            weighting=config.weighting,
            standardize=config.standardize,
            unknown=teacher.unknown,
        )
        return {"kd": Term(value, mask.sum(dtype=torch.float64))}
