"""DIST: the student's probabilities correlate with the teacher's, within pixels and classes.

Huang, You, Wang, Qian, Xu: Knowledge Distillation from A Stronger Teacher. NeurIPS 2022,
arXiv 2205.10536.

    L = T² · (w_1 · mean over valid pixels i of (1 − ρ_i) + w_2 · mean over classes k of (1 − ρ_k))

ρ_i is Pearson's correlation of p_s and p_t over the classes of pixel i (inter), ρ_k over all valid
pixels of the batch for class k (intra); p = softmax(z / T) over classes. A correlation allows the
teacher to be sharper than the student. ``eps`` is added to the variances, for constant maps.

Taps: the logits of both at head resolution. The authors add 0.4 times the loss on the auxiliary
heads, and include padding and void pixels. Their intra term covers the images of one device only;
here it covers all processes. A well-known port for detectors keeps (B, K, h, w), so that its intra
term correlates along the images; that is a different loss.

With two classes ρ_i is 1 or −1: inter has no gradient and is refused at build.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor
from torch.autograd.function import once_differentiable

from segkd.errors import ConfigError
from segkd.methods.base import (
    BuildContext,
    Context,
    Conversion,
    Method,
    MethodConfig,
    Needs,
    Weight,
)
from segkd.ops.resize import common_size, match_sizes
from segkd.structures import Batch, Outputs, Term


def dist_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    inter_weight: float = 1.0,
    intra_weight: float = 1.0,
    eps: float = 1e-10,
    all_sum: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """T² · (w_1 · (1 − correlation within pixels) + w_2 · (1 − correlation within classes)).

    Args:
        student: logits (B, K, h, w).
        teacher: logits or log-probabilities (B, K, h', w'); detached.
        mask: (B, h, w) bool at the smaller of both sizes, True where pixels are valid; None: all.
        temperature: T.
        inter_weight: w_1; with two classes this term has no gradient.
        intra_weight: w_2.
        eps: added to the variances of probabilities.
        all_sum: sums a tensor over processes, and so does its backward. Both terms are then those
            of all images, the same on every process; average gradients, do not sum them.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no pixel is valid.
    """
    student, teacher, mask = _probabilities(student, teacher, mask, temperature)
    inter = _inter(student, teacher, mask, eps) * mask.sum()
    inter, pixels = all_sum(torch.stack([inter, mask.sum().to(inter.dtype)]))
    intra = _intra(student, teacher, mask, eps, all_sum)
    return temperature**2 * (inter_weight * inter / pixels.clamp(min=1) + intra_weight * intra)


class DISTConfig(MethodConfig):
    """Keys of the method ``dist``."""

    weight: Weight = Field(0.5, description="factor of all terms; see docs/weights.md")
    temperature: PositiveFloat = Field(1.0, description="T of both softmaxes")
    eps: PositiveFloat = Field(1e-10, description="added to the variances of probabilities")


class DIST(Method[DISTConfig]):
    """Terms ``inter`` (a mean over valid pixels) and ``intra`` (the same on all processes)."""

    name = "dist"
    kind = "response"
    needs = Needs(student=("logits",), teacher=("logits",), accepts_log_prob=True)
    paper = "Huang et al.: Knowledge Distillation from A Stronger Teacher, arXiv 2205.10536"
    year = 2022
    published = "Cityscapes, DeepLabV3-R18: 74.21 → 77.10 (its README)"
    equation = "T² · (mean_pixels (1 − ρ over classes) + mean_classes (1 − ρ over pixels)), ρ of p"
    cost = "two softmaxes over the logits; both are kept for backward"
    default_weights: Mapping[str, float] = {"inter": 1.0, "intra": 1.0}
    exempt: ClassVar = {"any_temperature": "the paper has T² before correlations, which have no T"}
    conversions: ClassVar = {
        "DIST_KD segmentation": Conversion(1, note="T 1; and 0.4 on the auxiliary heads"),
        "mmrazor": Conversion(2, note="T 1; for rows of classes, not for maps"),
    }

    def __init__(self, config: DISTConfig | None = None) -> None:
        super().__init__(config)
        weights = {**self.default_weights, **self.config.weights}
        self.terms = [name for name in self.default_weights if weights[name] > 0]

    def build(self, spec: BuildContext) -> None:
        if spec.num_classes == 2 and "inter" in self.terms:
            raise ConfigError(
                "dist: with 2 classes two distributions correlate by 1 or -1, so the inter term "
                "has no gradient. Switch it off in this entry: weights.inter=0"
            )

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        temperature, eps = self.config.temperature, self.config.eps
        mask = context.mask_at(*common_size(student.logits, teacher.logits))
        maps = _probabilities(student.logits, teacher.logits, mask, temperature)
        terms = {}
        if "inter" in self.terms:
            value = temperature**2 * _inter(*maps, eps)
            terms["inter"] = Term(value, mask.sum(dtype=torch.float64))
        if "intra" in self.terms:
            terms["intra"] = Term(temperature**2 * _intra(*maps, eps, context.all_sum))
        return terms


def _probabilities(
    student: Tensor, teacher: Tensor, mask: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    student, teacher = match_sizes(student, teacher.detach(), mask=mask)
    if mask is None:
        mask = torch.ones_like(student[:, 0], dtype=torch.bool)
    return (student / temperature).softmax(1), (teacher / temperature).softmax(1), mask


def _inter(student: Tensor, teacher: Tensor, mask: Tensor, eps: float) -> Tensor:
    """Mean over the valid pixels of this process; 0 without any."""
    distance = 1 - pixel_correlation(student, teacher, eps=eps)
    return distance.masked_fill(~mask, 0).sum() / mask.sum().clamp(min=1)


def _intra(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    eps: float,
    all_sum: Callable[[Tensor], Tensor],
) -> Tensor:
    """Mean over classes, equal on all processes; 0 without any valid pixel."""
    correlation, pixels = class_correlation(student, teacher, mask, eps=eps, all_sum=all_sum)
    return (1 - correlation).mean() * (pixels > 0)


def pixel_correlation(student: Tensor, teacher: Tensor, *, eps: float) -> Tensor:
    """The correlation over the K classes, at each position.

    Args:
        student, teacher: (B, K, h, w); the teacher gets no gradient.
        eps: added to both variances, so that a uniform distribution has correlation 0.

    Returns:
        (B, h, w).
    """
    means = [x.detach().mean(1, keepdim=True) for x in (student, teacher)]
    sums = _CentralSums.apply(student, teacher, *means, None, (1,))
    return _correlation(sums / student.shape[1], eps)


def class_correlation(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    *,
    eps: float,
    all_sum: Callable[[Tensor], Tensor] = lambda x: x,
) -> tuple[Tensor, Tensor]:
    """The correlation over all valid positions of all images, for each class.

    Args:
        student, teacher: (B, K, h, w); the teacher gets no gradient.
        mask: (B, h, w) bool, True where positions are valid.
        eps: added to both variances, so that a constant map has correlation 0.
        all_sum: sums a tensor over processes, and so does its backward; called twice on each.

    Returns:
        (K,) correlations and the number of valid positions, the same on every process.
    """
    hidden = ~mask.unsqueeze(1)
    totals = [x.detach().masked_fill(hidden, 0).sum((0, 2, 3)) for x in (student, teacher)]
    count = mask.sum().to(totals[0].dtype).expand_as(totals[0])
    *totals, count = all_sum(torch.stack([*totals, count]))
    divisor = count.clamp(min=1)
    means = [(total / divisor)[:, None, None] for total in totals]
    sums = _CentralSums.apply(student, teacher, *means, hidden, (0, 2, 3))
    return _correlation(all_sum(sums) / divisor, eps), count[0]


class _CentralSums(torch.autograd.Function):
    """(3, …): Σ s·t, Σ s² and Σ t² over ``axes``, of s and t minus their means, 0 where hidden.

    Deviations from a mean sum to 0, so the means need no gradient of their own. Backward
    recomputes the deviations from the two inputs, which are in memory anyway.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        mean_s: Tensor,
        mean_t: Tensor,
        hidden: Tensor | None,
        axes: tuple[int, ...],
    ) -> Tensor:
        s, t = _deviations(student, teacher, mean_s, mean_t, hidden)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(student, teacher, mean_s, mean_t, hidden)
            ctx.axes = axes
        return torch.stack([(s * t).sum(axes), s.square_().sum(axes), t.square_().sum(axes)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        s, t = _deviations(*ctx.saved_tensors)
        for axis in ctx.axes:
            upstream = upstream.unsqueeze(axis + 1)
        gradient = t.mul_(upstream[0]).addcmul_(s, upstream[1], value=2)
        return gradient, None, None, None, None, None


def _deviations(
    student: Tensor, teacher: Tensor, mean_s: Tensor, mean_t: Tensor, hidden: Tensor | None
) -> tuple[Tensor, Tensor]:
    s, t = student - mean_s, teacher - mean_t
    return (s, t) if hidden is None else (s.masked_fill_(hidden, 0), t.masked_fill_(hidden, 0))


def _correlation(moments: Tensor, eps: float) -> Tensor:
    """Takes the root of each variance separately: their product would leave float32's range."""
    product, square_s, square_t = moments
    return product * (square_s + eps).rsqrt() * (square_t + eps).rsqrt()
