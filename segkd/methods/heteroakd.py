"""HeteroAKD: features of unlike networks as class scores, mixed by which of both is right.

Huang, Hu, Zhang, Chen, Gao: Distilling Knowledge from Heterogeneous Architectures for Semantic
Segmentation. AAAI 2025, arXiv 2504.07691.

    z_s, z_t = class scores of a position: a 1x1 convolution of each network's features
    H(z)_c = one-vs-rest cross-entropy of sigmoid(z_c) with the label
    m_c = H(z_s)_c / (H(z_s)_c + H(z_t)_c),   z_m = m · z_t + (1 − m) · z_s            (Eq. 5 to 7)
    w = K · softmax over classes of H(z_s) + max(0, H(z_s) − H(z_m))                   (Eq. 8, 9)
    L = T² · mean over labelled positions of Σ_c w_c (p_m log(p_m / p_s) − p_m + p_s)_c
    p = softmax(z / T) over classes;  z_m and w are constants

So the student learns from the teacher where the teacher is right and the student is not, and from
itself where it is the other way round; both in terms of classes, whatever the features look like.

Taps: the deepest stage of both by default, and labels (on images without labels, the teacher's
confident classes). The convolutions are trained by H alone, on both networks' features as they are,
with an optimiser of their own: so their scores stay what the features say of the label, and the
labels do not teach the student through them.

There is no public training code; the equations are from two re-implementations and their notes on
the paper, of which only the abstract was read; one of them takes the softmax of w over positions.
Ours: Eq. 10 is the cross-entropy −w_c p_m log p_s, which ``unbiased: false`` selects. It is
smallest at p_s ∝ w · p_m, so that it draws even a perfect student towards the classes that it is
bad at. The divergence above is smallest at p_s = p_m, and with all w equal it is that of `kd`, by
the factor K. The paper's projections end in batch norm and ReLU, after which a sigmoid cannot say
that a class is absent; here they are linear, on features of scale 1. The paper adds `kd` with a
weight of 0.1.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from segkd.methods.base import BuildContext, Context, Conversion, Needs, TapInfo, Weight
from segkd.methods.shared.feature_scale import ScaleKeys
from segkd.methods.shared.tapped import TapListKeys, TapListMethod
from segkd.ops.resize import common_size, match_sizes
from segkd.ops.target import labelled_mask, target_map
from segkd.structures import Batch, Outputs, Term

_START = 1e-3  # of the weights: random scores would be taken for knowledge until they are trained
_TINY = 1e-6  # of a cross-entropy: where both networks are certain, they count alike


def heteroakd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    labels: Tensor,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    unbiased: bool = True,
) -> Tensor:
    """L of the module's docstring, of scores that are projected already.

    Args:
        student: scores of classes (B, K, h, w).
        teacher: scores of classes (B, K, h', w'); detached.
        labels: (B, h, w) int64 at the smaller of both sizes; any value outside of 0 … K−1 is void.
        mask: (B, h, w) bool, True where positions are valid; None: all. Void ones never count.
        temperature: T.
        unbiased: False takes the paper's cross-entropy instead of the divergence.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no position counts.

    Raises:
        ValueError: labels and scores differ in size.
    """
    student, teacher = match_sizes(student, teacher.detach(), mask=mask)
    mask = labelled_mask(labels, student, mask)
    return _mixed(student, teacher, labels, mask, temperature, unbiased)


class HeteroAKDConfig(TapListKeys, ScaleKeys):
    """Keys of the method ``heteroakd``."""

    weight: Weight = Field(0.1, description="factor of all terms; see docs/weights.md")
    taps: list[str] | None = Field(
        None, description="taps of the student; default: the deepest stage"
    )
    temperature: PositiveFloat = Field(1.0, description="T of the softmax over classes")
    projection_lr: PositiveFloat = Field(
        1e-3, description="Adam's learning rate of the projections"
    )
    unbiased: bool = Field(
        True,
        description="a divergence that is smallest where both agree; false: the paper's "
        "cross-entropy, which is not",
    )


class HeteroAKD(TapListMethod[HeteroAKDConfig]):
    """Terms: one per tap of the student, each a mean over labelled positions."""

    name = "heteroakd"
    kind = "feature"
    paper = "Huang et al.: Distilling Knowledge from Heterogeneous Architectures, arXiv 2504.07691"
    year = 2025
    published = (
        "Cityscapes, DeepLabV3-MiT-B4 → MobileNetV2: 73.92 → 74.91 (its table 1; cwd: 71.59)"
    )
    equation = (
        "T² · mean Σ_c w_c (p_m log(p_m / p_s) − p_m + p_s)_c, p = softmax(z / T), "
        "z_m = m z_t + (1 − m) z_s, m = H(z_s) / (H(z_s) + H(z_t)), "
        "w = K softmax(H(z_s) + max(0, H(z_s) − H(z_m)))"
    )
    cost = "two 1x1 convolutions to K channels, and maps of K channels at the stride of the tap"
    conversions: ClassVar = {
        "two re-implementations": Conversion(1, note="T 4; the paper's own weight was not found"),
    }
    default_taps = ("stage5",)
    inner_steps = 1
    exempt: ClassVar = {"mask_not_padding": "a position without a label has no class to be right"}

    @property
    def needs(self) -> Needs:
        return replace(super().needs, labels=True)

    def build(self, spec: BuildContext) -> None:
        classes = spec.num_classes
        self.student_projections = _projections(spec.student, self.pairs, classes)
        self.teacher_projections = _projections(spec.teacher, self.pairs.values(), classes)

    def inner_parameters(self) -> list[nn.Parameter]:
        both = (self.student_projections, self.teacher_projections)
        return [parameter for layers in both for parameter in layers.parameters()]

    def inner_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, self.config.projection_lr)

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        keys, terms = self.config, {}
        for tap, *scores, labels, mask in self._projected(student, teacher, context):
            mine, theirs = scores
            value = _mixed(mine, theirs.detach(), labels, mask, keys.temperature, keys.unbiased)
            terms[tap] = Term(value, mask.sum(dtype=torch.float64))
        return terms

    def inner_loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        """H of both projections, summed over the classes."""
        terms = {}
        for tap, *scores, labels, mask in self._projected(student, teacher, context):
            wrong = torch.stack([_one_vs_rest(each, labels) for each in scores]).sum(0)
            terms[tap] = Term(_mean(wrong, mask), mask.sum(dtype=torch.float64))
        return terms

    def _projected(
        self, student: Outputs, teacher: Outputs, context: Context
    ) -> Iterator[tuple[str, Tensor, Tensor, Tensor, Tensor]]:
        """By tap: both scores (B, K, h, w), labels (B, h, w), and the mask of what counts."""
        layers = zip(self.pairs, self.student_projections, self.teacher_projections, strict=True)
        scaled = self.scaled(student, teacher, context)
        for (tap, own_layer, other_layer), pair in zip(layers, scaled, strict=True):
            size = common_size(*pair)
            valid, labels = context.mask_at(*size), context.labels_at(*size)
            own, other = match_sizes(*pair, mask=valid)
            mine, theirs = own_layer(own), other_layer(other)
            yield tap, mine, theirs, labels, labelled_mask(labels, mine, valid)


def _projections(taps: Mapping[str, TapInfo], names: Iterable[str], classes: int) -> nn.ModuleList:
    """A 1x1 convolution per tap, to class scores that begin at about a chance of one in K."""
    layers = nn.ModuleList()
    for name in names:
        layer = nn.Conv2d(taps[name].channels, classes, kernel_size=1)
        nn.init.normal_(layer.weight, std=_START)
        layer.bias = nn.Parameter(torch.full((classes,), -math.log(classes - 1)))
        layers.append(layer)
    return layers


def _one_vs_rest(scores: Tensor, labels: Tensor) -> Tensor:
    """H: the cross-entropy of each class against all others, (B, K, h, w); 0 is right."""
    target = target_map(labels, scores.shape[1]).to(
        torch.promote_types(scores.dtype, torch.float32)
    )
    return F.binary_cross_entropy_with_logits(scores.to(target.dtype), target, reduction="none")


def _mixed(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    mask: Tensor,
    temperature: float,
    unbiased: bool,
) -> Tensor:
    """L, the mean over ``mask`` (B, h, w); scores (B, K, h, w), labels (B, h, w)."""
    fixed = student.detach()
    with torch.no_grad():
        own, other = (_one_vs_rest(scores, labels) for scores in (fixed, teacher))
        share = (own + _TINY) / (own + other + 2 * _TINY)
        mixed = share * teacher + (1 - share) * fixed
        gain = (own - _one_vs_rest(mixed, labels)).clamp(min=0)
        weight = (own + gain).softmax(1) * own.shape[1]
        log_target = (mixed / temperature).log_softmax(1)
        target = log_target.exp()
    log_p = (student.to(target.dtype) / temperature).log_softmax(1)
    if unbiased:
        per_class = target * (log_target - log_p) - target + log_p.exp()
    else:
        per_class = -target * log_p
    return temperature**2 * _mean(weight * per_class, mask)


def _mean(per_class: Tensor, mask: Tensor) -> Tensor:
    """Mean over ``mask`` (B, h, w) of the sum over the classes of (B, K, h, w)."""
    return per_class.sum(1).masked_fill(~mask, 0).sum() / mask.sum().clamp(min=1)
