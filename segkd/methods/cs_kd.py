"""Class-wise self-distillation: pixels of one class should be predicted alike.

Yun, Park, Lee, Shin: Regularizing Class-wise Predictions via Self-knowledge Distillation.
CVPR 2020, arXiv 2003.13964.

    L = T² · mean over valid pixels x of KL(p(x') ‖ p(x)),   p = softmax(z / T) over classes

x' is another pixel with the label of x; p(x') has no gradient. The paper draws pairs of images;
here the pixels of a batch, on all processes, are the sample, so no second forward pass is needed.
``pairs: mean`` is the mean over all x' of the class, x among them: KL(p̄ ‖ p(x)) for the class's
mean prediction p̄, and the spread around p̄, which has no gradient. It is what random pairs teach
on average, without their noise, and is the same for a doubled batch. ``pairs: random`` (parity)
matches pixels one to one, with another image where possible; a pixel alone in its class is left
out.

Predictions near the border of a class differ for good reasons: ``interior`` leaves out pixels
with another label within that many positions of the logits. It is 0 unless set, for at a
stride of 8 poles and riders are all border.

Taps: the student's logits at head resolution, and labels; pixels without a label are left out.
"""

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat
from torch import Tensor

from segkd.methods.base import Context, Conversion, Method, MethodConfig, Needs
from segkd.ops.interior import interior as interior_of
from segkd.ops.same_class import class_predictions, random_partners
from segkd.ops.softmax_kl import softmax_kl
from segkd.ops.target import has_class
from segkd.structures import Batch, Outputs, Term


def cs_kd_loss(
    student: Tensor,
    *,
    labels: Tensor,
    mask: Tensor | None = None,
    temperature: float = 4.0,
    interior: int = 0,
    pairs: Literal["mean", "random"] = "mean",
    generator: torch.Generator | None = None,
    all_sum: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """Mean over valid pixels of T² · KL(pixels of the same class ‖ pixel) over the classes.

    Args:
        student: logits (B, K, h, w).
        labels: (B, h, w) int64; any value outside of 0 … K−1 is void.
        mask: (B, h, w) bool, True where pixels are valid; None: all. Void pixels never count.
        temperature: T.
        interior: leaves out pixels with another label within this many positions.
        pairs: ``mean`` of all pixels of the class, or one at ``random``.
        generator: of the CPU, for random pairs; None: torch's own.
        all_sum: adds a tensor over processes, for mean pairs; the value is that of these images.
            For random pairs gather logits, labels and mask of all processes first.

    Returns:
        A scalar, float32 or wider; 0 with a graph if no pixel counts.
    """
    student = student.to(torch.promote_types(student.dtype, torch.float32))
    mask = _counted(student, labels, mask, interior)
    if pairs == "random":
        return _random_pairs(student, labels, mask, temperature, generator)
    log_prob = (student.detach() / temperature).log_softmax(1)
    mean, spread = class_predictions(log_prob, labels, mask, all_sum=all_sum)
    index = labels.masked_fill(~mask, 0)
    target = temperature * mean.to(student.dtype)[index].movedim(-1, 1)
    total = softmax_kl(student, target, mask.unsqueeze(1), dim=1, temperature=temperature)
    constant = temperature**2 * (spread.to(student.dtype)[index] * mask).sum()
    return (total + constant) / mask.sum().clamp(min=1)


class CSKD(Method):
    name = "cs_kd"
    kind = "self"
    needs = Needs(student=("logits",), labels=True)
    paper = "Yun et al.: Regularizing Class-wise Predictions via Self-KD, arXiv 2003.13964"
    year = 2020
    equation = "T² · mean_pixels KL(p(x') ‖ p(x)), x' of the label of x, without gradient"
    cost = "KD, and K·K sums over the logits; one tensor of their size is kept for backward"
    conversions: ClassVar = {"cs-kd": Conversion(1, note="T 4; random pairs of images")}

    class Config(MethodConfig):
        temperature: PositiveFloat = Field(4.0, description="T of both softmaxes")
        interior: NonNegativeInt = Field(0, description="positions between pixel and class border")
        pairs: Literal["mean", "random"] = Field("mean", description="all partners, or one each")

    def loss(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, context: Context
    ) -> dict[str, Term]:
        config, size = self.config, student.logits.shape[-2:]
        logits, labels, mask = student.logits, context.labels_at(*size), context.mask_at(*size)
        if config.pairs == "random":
            logits, labels, mask = (context.gather(x) for x in (logits, labels, mask))
        mask = _counted(logits, labels, mask, config.interior)
        value = cs_kd_loss(
            logits,
            labels=labels,
            mask=mask,
            temperature=config.temperature,
            pairs=config.pairs,
            generator=context.generator,
            all_sum=context.all_sum,
        )
        count = mask.sum(dtype=torch.float64) if config.pairs == "mean" else None
        return {"cs_kd": Term(value, count)}


def _counted(student: Tensor, labels: Tensor, mask: Tensor | None, radius: int) -> Tensor:
    """(B, h, w) bool: valid, labelled, and inside of its class."""
    labelled = has_class(labels, student)
    mask = labelled if mask is None else mask & labelled
    return mask & interior_of(labels.masked_fill(~mask, -1), radius) if radius else mask


def _random_pairs(
    student: Tensor,
    labels: Tensor,
    mask: Tensor,
    temperature: float,
    generator: torch.Generator | None,
) -> Tensor:
    """Mean over the pixels that have a partner."""
    pixels = student.movedim(1, -1)[mask]  # (M, K)
    partners = random_partners(labels[mask], mask.nonzero()[:, 0], generator)
    paired = partners != torch.arange(len(partners), device=partners.device)
    targets = pixels.detach()[partners]
    total = softmax_kl(pixels, targets, paired.unsqueeze(1), dim=1, temperature=temperature)
    return total / paired.sum().clamp(min=1)
