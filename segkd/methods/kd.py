"""Knowledge distillation: the student matches the teacher's class probabilities at each pixel.

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network. NIPS 2014 workshop,
arXiv 1503.02531. Per pixel: Liu et al., Structured Knowledge Distillation, CVPR 2019,
arXiv 1903.04197.

    L = T² · mean over valid pixels of Σ_k p_t log(p_t / p_s),   p = softmax(z / T) over classes

Taps: the logits of both at head resolution; up-sampling them first adds cost and no information.
Public code reduces in four ways (see ``conversions``) and distils crop padding as well. Here it
is the mean over valid pixels, as in CIRKD, so that a weight of 1 means the same for any batch.
"""

from typing import ClassVar

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from segkd.methods.base import Context, Conversion, Method, MethodConfig, Needs
from segkd.ops.resize import common_size
from segkd.ops.softmax_kl import pixel_kl
from segkd.structures import Batch, Outputs, Term


def kd_loss(
    student: Tensor, teacher: Tensor, *, mask: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """Mean over valid pixels of T² · KL(teacher ‖ student) over the classes.

    Args:
        student: logits (B, K, h, w).
        teacher: logits or log-probabilities (B, K, h', w'); detached.
        mask: (B, h, w) bool at the smaller of both sizes, True where pixels are valid; None: all.
        temperature: T; larger values emphasise the small probabilities.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no pixel is valid.

    Raises:
        ValueError: the mask has another shape, or the classes differ.
    """
    return pixel_kl(student, teacher, mask=mask, temperature=temperature)


class KDConfig(MethodConfig):
    """Keys of the method ``kd``."""

    temperature: PositiveFloat = Field(1.0, description="T; segmentation's gains are at 1")


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
    }

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        mask = context.mask_at(*common_size(student.logits, teacher.logits))
        value = kd_loss(
            student.logits, teacher.logits, mask=mask, temperature=self.config.temperature
        )
        return {"kd": Term(value, mask.sum(dtype=torch.float64))}
