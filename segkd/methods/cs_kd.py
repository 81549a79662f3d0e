"""Class-wise self-distillation: pixels of one class should have similar predictions.

Yun, Park, Lee, Shin: Regularizing Class-wise Predictions via Self-knowledge Distillation.
CVPR 2020, arXiv 2003.13964.

    L = T² · mean over valid pixels x of KL(p(x') ‖ p(x)),   p = softmax(z / T) over classes

x' is another pixel with the label of x; p(x') has no gradient. The paper samples pairs of images;
here pairs are pixels of the global batch, so no second forward pass is needed.
``pairs: mean`` is the mean over all x' of the class, including x: KL(p̄ ‖ p(x)) for the class's
mean prediction p̄, and the spread around p̄, which has no gradient. It is the expectation over
random pairs, without their noise, and the same for a doubled batch. ``pairs: random`` (parity)
matches pixels one to one, across images where possible; the only pixel of its class is skipped.

Predictions near the border of a class differ for good reasons: ``interior`` skips pixels with
another label within that many positions of the logits. The default is 0, because at a stride of 8
poles and riders are all border.

Taps: the student's logits at head resolution, and labels; pixels without a label are skipped.
"""

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat
from torch import Tensor

from segkd.methods.base import Context, Conversion, MethodConfig, Needs, SelfMethod
from segkd.ops.queued import queued
from segkd.ops.softmax_kl import mean_softmax_kl, softmax_kl
from segkd.ops.target import labelled_mask, target_map
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
        interior: skips pixels with another label within this many positions.
        pairs: ``mean`` of all pixels of the class, or one at ``random``.
        generator: CPU generator for random pairs; None: the global one.
        all_sum: sums a tensor over processes, for mean pairs; the value is that of these images.
            For random pairs gather logits, labels and mask of all processes first.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no pixel counts.

    Raises:
        ValueError: labels or mask have another shape.
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


class CSKDConfig(MethodConfig):
    """Keys of the method ``cs_kd``."""

    temperature: PositiveFloat = Field(4.0, description="T of both softmaxes")
    interior: NonNegativeInt = Field(0, description="positions between pixel and class border")
    pairs: Literal["mean", "random"] = Field("mean", description="all partners, or one each")


class CSKD(SelfMethod[CSKDConfig]):
    """Term ``cs_kd``, a mean over valid pixels."""

    name = "cs_kd"
    kind = "self"
    needs = Needs(student=("logits",), labels=True)
    paper = "Yun et al.: Regularizing Class-wise Predictions via Self-KD, arXiv 2003.13964"
    year = 2020
    equation = "T² · mean_pixels KL(p(x') ‖ p(x)), x' of the label of x, without gradient"
    cost = "KD, and K·K sums over the logits; one tensor of their size is kept for backward"
    exempt: ClassVar = {"mask_not_padding": "a pixel without a label has no class to compare with"}
    conversions: ClassVar = {"cs-kd": Conversion(1, note="T 4; random pairs of images")}

    def self_loss(self, student: Outputs, batch: Batch, context: Context) -> dict[str, Term]:
        config, size = self.config, student.logits.shape[-2:]
        logits, labels, mask = student.logits, context.labels_at(*size), context.mask_at(*size)
        if config.pairs == "random":
            logits, labels, mask = context.gather_rows(logits, labels, mask)
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
    """(B, h, w) bool: valid, labelled, and in the interior of its class."""
    mask = labelled_mask(labels, student, mask)
    return mask & interior(labels.masked_fill(~mask, -1), radius) if radius else mask


def _random_pairs(
    student: Tensor,
    labels: Tensor,
    mask: Tensor,
    temperature: float,
    generator: torch.Generator | None,
) -> Tensor:
    """Mean over pixels that have a partner."""
    place = mask.flatten().nonzero()[:, 0]
    pixels = student.movedim(1, -1).flatten(0, 2).index_select(0, place)  # (M, K)
    images = place // mask[0].numel()
    partners = random_partners(labels.flatten()[place], images, generator)
    paired = partners != torch.arange(len(partners), device=partners.device)
    targets = pixels.detach()[partners]
    return mean_softmax_kl(pixels, targets, paired, temperature=temperature)


def interior(labels: Tensor, radius: int) -> Tensor:
    """True where all labels within ``radius`` (a square window) are equal.

    The border of the image does not count as a border of a class.

    Args:
        labels: (B, h, w), integers; void counts as a class here.
        radius: in positions; 0 keeps everything.

    Returns:
        (B, h, w) bool.
    """
    values = labels.unsqueeze(1).double()
    largest, smallest = (
        sign * F.max_pool2d(sign * values, 2 * radius + 1, stride=1, padding=radius)
        for sign in (1, -1)
    )
    return (largest == smallest).squeeze(1)


@torch.no_grad()
def class_predictions(
    log_prob: Tensor,
    labels: Tensor,
    mask: Tensor,
    *,
    all_sum: Callable[[Tensor], Tensor] = lambda x: x,
) -> tuple[Tensor, Tensor]:
    """The mean prediction of each class, and the mean divergence of its pixels from it.

    Args:
        log_prob: log-probabilities (B, K, h, w).
        labels: (B, h, w) int64; any value outside of 0 … K−1 is void.
        mask: (B, h, w) bool, True where pixels are valid.
        all_sum: sums a tensor over processes.

    Returns:
        (K, K) log of the mean probabilities, a row per class of the label, and (K,) the mean of
        KL(a pixel's prediction ‖ the mean prediction). Float64; uniform and 0 for absent classes.
    """
    classes = log_prob.shape[1]
    sums = torch.zeros(classes, classes + 2, dtype=torch.float64, device=log_prob.device)
    for rows, own_labels, valid in zip(log_prob, labels, mask, strict=True):
        # Products in float64: small, and neither autocast nor TF32 can round them.
        members = target_map(own_labels[None].masked_fill(~valid, -1), classes)[0]
        rows = rows.flatten(1).double().masked_fill(~valid.flatten(), 0)
        seen = rows.exp()
        entropy = (seen * rows).masked_fill(seen == 0, 0).sum(0, keepdim=True)
        columns = torch.cat([seen, entropy, torch.ones_like(entropy)])
        sums += members.flatten(1).double() @ columns.T
    sums = all_sum(sums)
    mean, entropy, count = torch.split(sums, [classes, 1, 1], dim=1)
    absent, count = count == 0, count.clamp(min=1)
    mean = (mean / count).masked_fill(absent, 1 / classes)
    spread = (entropy / count - torch.xlogy(mean, mean).sum(1, keepdim=True)).clamp(min=0)
    low = torch.finfo(torch.float32).tiny
    return mean.clamp(min=low).log(), spread.masked_fill(absent, 0).squeeze(1)


def random_partners(
    labels: Tensor, images: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Matches each of M pixels with another of its class, one to one and at random.

    Pixels of a class are sorted by image, in random order within each, and shifted by the number
    of pixels of the largest image. So a partner is from another image, unless one image has more
    than half of the class. The only pixel of a class is its own partner.

    Args:
        labels: (M,) int64, from 0.
        images: (M,) int64, from 0: the image of each pixel.
        generator: CPU generator; None: the global one.

    Returns:
        (M,) int64: the position of each pixel's partner.
    """
    if not len(labels):
        return labels
    shuffle = torch.randperm(len(labels), generator=generator)
    shuffle = queued(shuffle, labels.device)
    turn = torch.randperm(int(images.max()) + 1, generator=generator)
    turn = queued(turn, labels.device)
    group = labels * len(turn) + turn[images]  # a number per class and image
    order = shuffle[group[shuffle].argsort(stable=True)]
    counts = group.bincount(minlength=(int(labels.max()) + 1) * len(turn)).view(-1, len(turn))
    total, largest = counts.sum(1), counts.amax(1)
    step = torch.where(largest < total, largest, total // 2)
    start = total.cumsum(0) - total
    lined_up = labels[order]
    place = torch.arange(len(labels), device=labels.device) - start[lined_up]
    following = start[lined_up] + (place + step[lined_up]) % total[lined_up]
    return torch.empty_like(order).scatter_(0, order, order[following])
