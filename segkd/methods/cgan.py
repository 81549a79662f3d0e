"""Distillation by a conditional adversarial network: a critic of each pixel's logits.

Xu, Hsu, Huang: Training Shallow and Thin Networks for Acceleration via Knowledge Distillation with
Conditional Adversarial Networks. ICLR 2018 workshop, arXiv 1709.00513.

    student  L = mean_pixels ‖z_s − z_t‖₁ − ½ log D(teacher | z_s) − ½ log D(y | z_s)
    critic   mean_pixels −log D(teacher | z_t) − log D(student | z_s)
                         − log D(y | z_t) − log D(y | z_s)

D is a perceptron on the logits z of a pixel, minus their mean, which has no meaning; y is its
label. Taps: the logits of both. There is no public code: this is the paper's wording. Its networks
classify images; here D is the same perceptron at every pixel, and learns from a random part of
them, as neighbours hardly differ. The student minimises −log D(teacher | z_s), which has a slope
where D is sure; the paper prints log D(student | z_s). The paper's noise is dropout in the student;
D has weight decay, but none of the paper's adversarial samples. The task loss is the run's own.
In images without labels only pixels of which the teacher is sure count, unless
``mask: not_padding`` or ``weights: {class: 0}`` is set.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import softplus

from segkd.errors import ConfigError
from segkd.methods.base import BuildContext, Context, Conversion, Needs, Weight
from segkd.methods.shared.critics import CriticKeys, CriticMethod
from segkd.modules.class_queue import pick_valid
from segkd.modules.critic import frozen
from segkd.modules.position_critic import PositionCritic
from segkd.ops.known import class_mask
from segkd.ops.masked import position_mask
from segkd.ops.resize import common_size, match_sizes
from segkd.ops.target import labelled_mask, target_map
from segkd.structures import Batch, Outputs, Term

_WEIGHTS = {"l1": 1.0, "adversarial": 0.5, "class": 0.5}


def cgan_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    critic: nn.Module,
    labels: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """The student's loss, with the paper's weights; gradients reach only the student.

    Args:
        student: logits (B, K, h, w).
        teacher: logits or log-probabilities (B, K, h', w'); detached.
        critic: (B, K, h, w) to (B, 1 + K, h, w): the logit of "this is the teacher", then the
            scores of the classes; the scores of a pixel depend on its own logits only.
        labels: (B, h, w) int64 at the smaller of both sizes; any value outside of 0 … K−1 is void.
            None: without the term of the classes.
        mask: (B, h, w) bool at the smaller of both sizes, True where pixels are valid; None: all.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no pixel is valid.
    """
    student, teacher = centred(student, teacher.detach(), mask)
    mask = position_mask(student, mask)
    terms = _terms(student, teacher, critic, labels, mask)
    return sum((_WEIGHTS[k] * term.value for k, term in terms.items()), student.new_zeros(()))


def _terms(
    student: Tensor, teacher: Tensor, critic: nn.Module, labels: Tensor | None, mask: Tensor
) -> dict[str, Term]:
    """The student's terms by name, from centred logits of one size; see ``cgan_loss``."""
    scores, count = frozen(critic, student), mask.sum(dtype=torch.float64)
    terms = {
        "l1": Term(pixel_mean((student - teacher).abs().sum(1), mask), count),
        "adversarial": Term(pixel_mean(softplus(-scores[:, 0]), mask), count),
    }
    if labels is not None:
        known = labelled_mask(labels, student, mask)
        value = class_loss(scores, labels, known)
        terms["class"] = Term(value, known.sum(dtype=torch.float64))
    return terms


def centred(
    student: Tensor, teacher: Tensor, mask: Tensor | None, unknown: tuple[int, ...] = ()
) -> tuple[Tensor, Tensor]:
    """Logits minus their mean over the classes, which are the same for log-probabilities.

    Args:
        student: (B, K, h, w).
        teacher: (B, K, h', w').
        mask: as of ``match_sizes``.
        unknown: ids of classes that do not count; their values become 0 on both sides.

    Returns:
        (B, K, h, w) each, float32 or wider.
    """
    pair = match_sizes(student, teacher, mask=mask)
    if not unknown:
        own, other = (logits - logits.mean(1, keepdim=True) for logits in pair)
        return own, other
    out = class_mask(unknown, student.shape[1], student.device)
    known = student.shape[1] - len(unknown)
    means = [logits.masked_fill(out, 0).sum(1, keepdim=True) / known for logits in pair]
    own, other = ((x - mean).masked_fill(out, 0) for x, mean in zip(pair, means, strict=True))
    return own, other


def pixel_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of (B, h, w) over the positions of a mask; a differentiable zero if there are none."""
    return values.masked_fill(~mask, 0).sum() / mask.sum().clamp(min=1)


def class_loss(scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Mean over ``mask`` of −log D(y | z), from the scores (B, 1 + K, h, w) of a critic."""
    log_p = scores[:, 1:].log_softmax(1)
    target = target_map(labels, log_p.shape[1])
    return pixel_mean(-log_p.masked_fill(~target, 0).sum(1), mask)


class CGANConfig(CriticKeys):
    """Keys of the method ``cgan``."""

    weight: Weight = Field(0.1, description="factor of all terms; see docs/weights.md")
    width: PositiveInt = Field(64, description="channels of the critic's two hidden layers")
    critic_pixels: PositiveInt | None = Field(
        1024, description="random pixels per image that the critic learns from; null: all"
    )
    critic_decay: NonNegativeFloat = Field(5e-4, description="weight decay of the critic")


class CGAN(CriticMethod[CGANConfig]):
    """Terms ``l1`` and ``adversarial``, means over pixels, and ``class``, over labelled ones."""

    name = "cgan"
    paper = "Xu, Hsu, Huang: Knowledge Distillation with Conditional Adversarial Nets, 1709.00513"
    year = 2018
    equation = "mean_pixels ‖z_s − z_t‖₁ − ½ log D(teacher | z_s) − ½ log D(y | z_s)"
    cost = "a perceptron on the logits of each pixel, and of 1024 pixels per image for the critic"
    default_weights: Mapping[str, float] = _WEIGHTS
    conversions: ClassVar = {
        "the paper": Conversion(1, note="its text; there is no public code"),
    }

    def __init__(self, config: CGANConfig | None = None) -> None:
        super().__init__(config)
        weights = {**self.default_weights, **self.config.weights}
        self.active = {term for term in self.default_weights if weights[term] > 0}

    @property
    def needs(self) -> Needs:
        labels = "class" in self.active
        return Needs(("logits",), ("logits",), labels=labels, accepts_log_prob=True)

    def build(self, spec: BuildContext) -> None:
        if not self.active & {"adversarial", "class"}:
            raise ConfigError(
                "cgan: weights.adversarial and weights.class are both 0, which leaves the critic "
                "without a purpose. Raise one of them, or use kd"
            )
        classes = spec.num_classes if "class" in self.active else 0
        widths = (self.config.width, self.config.width)
        self.critic = PositionCritic(spec.num_classes, widths, 1 + classes)

    def inner_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        config = self.config
        return torch.optim.Adam(
            parameters, config.critic_lr, config.critic_betas, weight_decay=config.critic_decay
        )

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        mask = context.mask_at(*common_size(student.logits, teacher.logits))
        pair = centred(student.logits, teacher.logits.detach(), mask, teacher.unknown)
        labels = context.labels_at(*mask.shape[1:]) if "class" in self.active else None
        terms = _terms(*pair, self.critic, labels, mask)
        return {name: term for name, term in terms.items() if name in self.active}

    def inner_loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        mask = context.mask_at(*common_size(student.logits, teacher.logits))
        size = tuple(mask.shape[1:])
        fake, real = centred(
            student.logits.detach(), teacher.logits.detach(), mask, teacher.unknown
        )
        labels = context.labels_at(*size) if "class" in self.active else None
        if self.config.critic_pixels is not None:
            number = min(self.config.critic_pixels, mask[0].numel())
            places, mask = pick_valid(mask.flatten(1), number, context.image_generators)
            fake, real = (_at(maps, places) for maps in (fake, real))
            mask = mask.unsqueeze(2)
            labels = None if labels is None else labels.flatten(1).gather(1, places).unsqueeze(2)
        of_fake, of_real = self.critic(torch.cat([fake, real])).chunk(2)
        count = mask.sum(dtype=torch.float64)
        terms = {
            "student": Term(pixel_mean(softplus(of_fake[:, 0]), mask), count),
            "teacher": Term(pixel_mean(softplus(-of_real[:, 0]), mask), count),
        }
        if labels is not None:
            known = labelled_mask(labels, fake, mask)
            value = class_loss(of_fake, labels, known) + class_loss(of_real, labels, known)
            terms["class"] = Term(value, known.sum(dtype=torch.float64))
        return terms


def _at(maps: Tensor, places: Tensor) -> Tensor:
    """The values of maps (B, K, h, w) at positions (B, M) of 0 … h·w−1, as (B, K, M, 1)."""
    index = places.unsqueeze(1).expand(-1, maps.shape[1], -1)
    return maps.flatten(2).gather(2, index).unsqueeze(3)
