"""MGD: generates the teacher's features from the student's, most of which are masked.

Yang, Li, Shao, Shi, Yuan, Yuan: Masked Generative Distillation. ECCV 2022, arXiv 2205.01529.

    L = mean over valid positions and channels of (G(a(F_s) · M) − F_t)²
    M keeps a position with probability 1 − masked;  G: conv 3x3, ReLU, conv 3x3;  a: 1x1

Taps: ``head`` by default. The published configs tap a backbone of 2048 channels, where G alone
has 75 million parameters and several times the student's cost.
Public code sums over channels and positions, so its weight fits one size only, and always adds CWD
on the logits with weight 3: its published gain is that of both (here: add ``cwd: {}``).
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn

from segkd.methods.base import BuildContext, Context, Conversion, Weight
from segkd.methods.shared.feature_scale import ScaleKeys
from segkd.methods.shared.masked_generation import feature_generator, generated_pair, random_keep
from segkd.methods.shared.tapped import TapKeys, TapMethod
from segkd.modules.adapter import channel_adapter
from segkd.ops.queued import queued
from segkd.ops.resize import common_size
from segkd.ops.squared_distance import masked_mse
from segkd.structures import Batch, Outputs, Term


def mgd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    keep: Tensor | None = None,
    generate: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """Mean squared difference of generated and true features over valid positions and channels.

    Args:
        student: features (B, C, h, w), aligned to the teacher's channels.
        teacher: features (B, C, h', w'); detached.
        mask: (B, h, w) bool at the smaller of both sizes, True where positions are valid; None:
            all. Invalid positions are zero before ``generate`` and excluded from the mean.
        keep: (B, h, w) bool, the random mask: False positions are zero before ``generate``, but
            count in the mean; None: all are kept. See ``random_keep``.
        generate: the generator, (B, C, h, w) -> (B, C, h, w).

    Returns:
        A scalar, float32 or wider; a differentiable zero if no position is valid.

    Raises:
        ValueError: the channels differ.
    """
    return masked_mse(*generated_pair(student, teacher, mask, keep, generate))


class MGDConfig(TapKeys, ScaleKeys):
    """Keys of the method ``mgd``."""

    weight: Weight = Field(0.6, description="factor of all terms; see docs/weights.md")
    masked: float = Field(0.75, ge=0, lt=1, description="share of positions that are hidden")
    width: NonNegativeInt = Field(
        0, description="hidden channels of the generator; 0: the teacher's, at most 512"
    )


class MGD(TapMethod[MGDConfig]):
    """Term ``mgd``, a mean over valid positions."""

    name = "mgd"
    kind = "feature"
    paper_weight = 10.0
    scale_free = False
    paper = "Yang et al.: Masked Generative Distillation, arXiv 2205.01529"
    year = 2022
    published = "Cityscapes, PSPNet-R18: 69.85 → 73.63, with cwd (its README)"
    equation = "mean_{positions, channels} (G(a(F_s) · M) − F_t)², M hides a random share"
    cost = "two 3x3 convolutions at the teacher's channels: 36·N·C_t·width operations forward"
    conversions: ClassVar = {
        "MGD segmentation": Conversion(2e-5, {"C_t": 1, "h": 1, "w": 1}, "plus CWD with weight 3"),
        "mmrazor": Conversion(2e-5, {"C_t": 1, "h": 1, "w": 1}, "its default alpha_mgd"),
    }

    def __init__(self, config: MGDConfig | None = None) -> None:
        super().__init__(config)
        self.adapter: nn.Module = nn.Identity()

    def build(self, spec: BuildContext) -> None:
        channels = spec.teacher[self.teacher_tap].channels
        self.adapter = channel_adapter(spec.student[self.config.tap].channels, channels, gain=1.0)
        self.generator = feature_generator(channels, self.config.width)

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        features, target = self.scaled(student, teacher, context)
        features = self.adapter(features)
        size = common_size(features, target)
        mask = context.mask_at(*size)
        keep = random_keep(context.image_generators, size, self.config.masked)
        keep = queued(keep, mask.device)
        value = mgd_loss(features, target, mask=mask, keep=keep, generate=self.generator)
        return {"mgd": Term(value, mask.sum(dtype=torch.float64))}
