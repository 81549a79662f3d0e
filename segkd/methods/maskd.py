"""MasKD: logits or features are compared within learned masks, each weighing the same.

Huang, Zhang, You, Wang, Qian, Cao, Xu: Masked Distillation with Receptive Tokens. ICLR 2023,
arXiv 2205.14589.

    beforehand  task loss of Σ_k m_k · F_t  +  mean_{a ≠ b} 2 Σ m_a m_b / (Σ m_a² + Σ m_b²)
    then        L = mean over images, masks k and channels of Σ_i m_ki² (s − t)_i² / Σ_i m_ki
    m_k = σ(token_k · F_t), learned tokens

Taps: the logits by default, as in the authors' code for segmentation, from which the equations are
taken; the paper itself was not at hand. The tokens learn in the first steps of the run, from the
teacher alone; then they are frozen, and distillation begins. At another tap than the logits the
masked features need a classifier for the task loss: a linear one learns along with the tokens.
Public code trains tokens in a program of its own, halves the loss, and adds 0.4 times the same of
the auxiliary heads. It multiplies every channel by every mask; here Σ_c (s − t)² comes first, so
that a mask costs one map instead of C.
"""

from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from segkd.methods.base import BuildContext, Context, Conversion, Needs, Weight
from segkd.methods.shared.feature_scale import ScaleKeys
from segkd.methods.shared.tapped import TapKeys, TapMethod
from segkd.methods.shared.token_masks import TokenKeys, TokenMasks, overlap_term, task_terms
from segkd.ops.masked import count_images, image_mean, position_mask, require_equal_shapes
from segkd.ops.resize import common_size, match_sizes
from segkd.structures import Batch, Outputs, Term

_EPS = 1e-12  # of the size of a mask without valid positions


def maskd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    masks: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Mean over images, masks and channels of Σ_i m² (s − t)² / Σ_i m.

    Args:
        student: logits or features (B, C, h, w), in the teacher's channels.
        teacher: the same of the teacher, (B, C, h', w'); detached.
        masks: T of each image, (B, T, h, w), from 0 to 1; detached. None: one that is 1 everywhere.
        mask: (B, h, w) bool at the smaller of both sizes, True where positions are valid; None:
            all. Images without any valid position are excluded from the mean.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no position is valid.

    Raises:
        ValueError: channels differ, or masks have another size than the smaller map.
    """
    student, teacher = match_sizes(student, teacher.detach(), mask=mask)
    require_equal_shapes(student, teacher)
    mask = position_mask(student, mask)
    masks = torch.ones_like(student[:, :1]) if masks is None else masks
    if masks.shape[0] != len(student) or masks.shape[2:] != student.shape[2:]:
        raise ValueError(
            f"maskd_loss: masks have shape {tuple(masks.shape)}, expected (B, T, h, w) with B "
            f"{len(student)} and (h, w) {tuple(student.shape[2:])}, the smaller size of both maps"
        )
    masks = masks.detach().masked_fill(~mask.unsqueeze(1), 0).flatten(2)
    squares = (student - teacher).square().sum(dim=1).flatten(1)  # before the masks: 1/C of them
    sums = (masks.square() @ squares.unsqueeze(2)).squeeze(2)
    by_mask = sums / masks.sum(dim=2).clamp(min=_EPS)
    return image_mean(by_mask.mean(dim=1) / student.shape[1], mask)


class MasKDConfig(TapKeys, ScaleKeys, TokenKeys):
    """Keys of the method ``maskd``."""

    weight: Weight = Field(10.0, description="factor of all terms; see docs/weights.md")
    tap: str = Field("logits", description="tapped value of the student")
    tokens: PositiveInt = Field(8, description="number of masks")


class MasKD(TapMethod[MasKDConfig]):
    """Term ``maskd``, a mean over images; tokens are trained beforehand by ``inner_loss``."""

    name = "maskd"
    kind = "response"
    paper_weight = 0.5
    paper = "Huang et al.: Masked Distillation with Receptive Tokens, arXiv 2205.14589"
    year = 2023
    published = "Cityscapes, DeepLabV3-R18: 74.21 → 77.00 (its README)"
    equation = (
        "mean_{images, masks, channels} Σ_i m² (s − t)² / Σ_i m, m = σ(token · F_t), the tokens "
        "learned beforehand: task loss of Σ_k m_k F_t, and their mean Dice coefficient"
    )
    cost = "two products of the tapped map with each token; beforehand a task loss more"
    needs_labels = True
    inner_steps = 1
    conversions: ClassVar = {
        "MasKD segmentation": Conversion(0.5, {}, "plus 0.4 times the same of the auxiliary heads"),
    }

    @property
    def needs(self) -> Needs:
        """Both taps, and labels for the tokens."""
        return replace(super().needs, inner_labels=True)

    def build(self, spec: BuildContext) -> None:
        channels = spec.teacher[self.teacher_tap].channels
        self.adapter = self.aligned(spec)
        self.masks = TokenMasks(self.config.tokens, channels)
        of_logits = self.teacher_tap == "logits"
        self.classifier = nn.Identity() if of_logits else nn.Conv2d(channels, spec.num_classes, 1)

    def preparation_steps(self, total_steps: int) -> int:
        return self.config.steps_for_tokens(total_steps)

    def inner_parameters(self) -> list[nn.Parameter]:
        return [*self.masks.parameters(), *self.classifier.parameters()]

    def inner_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, self.config.token_lr)

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        features, target, mask = self._inputs(student, teacher, context)
        with torch.no_grad():
            masks = self.masks(target)
        value = maskd_loss(self.adapter(features), target, masks=masks, mask=mask)
        return {"maskd": Term(value, count_images(mask))}

    def inner_loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        _, target, mask = self._inputs(student, teacher, context)
        masks = self.masks(target)
        seen = self._unscaled(teacher, target, mask) * masks.sum(dim=1, keepdim=True)
        terms = task_terms(self.classifier(seen), batch, context)
        return {**terms, "overlap": overlap_term(masks, mask)}

    def _inputs(
        self, student: Outputs, teacher: Outputs, context: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Both maps (B, C_s, h, w) and (B, C_t, h, w), and the mask (B, h, w)."""
        features, target = self.scaled(student, teacher, context)
        mask = context.mask_at(*common_size(features, target))
        return *match_sizes(features, target, mask=mask), mask

    def _unscaled(self, teacher: Outputs, target: Tensor, mask: Tensor) -> Tensor:
        """What the classifier reads: logits mean something in their own scale only."""
        if self.teacher_tap != "logits":
            return target
        return match_sizes(teacher.logits, target[:, :1], mask=mask)[0]
