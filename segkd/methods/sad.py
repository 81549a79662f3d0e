"""Self attention distillation: a stage matches the spatial attention map of a later stage.

Hou, Ma, Liu, Loy: Learning Lightweight Lane Detection CNNs by Self Attention Distillation.
ICCV 2019, arXiv 1908.00821.

    L = Σ_pairs mean over images of Σ_i (q_a − q_b)²,   q = Q / ‖Q‖₂ over the positions i
    Q = Σ_c |F_c|^p  or  max_c |F_c|^p;  b, the later stage, is a target without gradient

Taps: pairs of one network, without a teacher; by default the last three stages, each with the
next. The paper's E2, E3, E4 are our stage 3, 4, 5.
The paper normalises maps by a softmax over positions instead of the norm. On sums of squares it
saturates at one pixel, and the mean over positions of squared differences of such maps is nearly
constant, so its gradient vanishes. The form is kept as ``normalize: softmax``. Public code also
backpropagates into the target (``detach: false``); the authors' release has the weight at 0.
Larger maps are averaged to the smaller size; the paper up-samples the smaller one.

Attention of an untrained network is noise: the paper starts at step 40,000 of 60,000. As runs
differ in length ``start`` is 0 here; set it to about two thirds of your steps, and ``warmup`` to
ramp up.
"""

from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor

from segkd.errors import ConfigError
from segkd.methods.base import (
    Context,
    Conversion,
    MethodConfig,
    Needs,
    SelfMethod,
    TapNames,
    Weight,
)
from segkd.methods.shared.tapped import bound_pairs
from segkd.ops.attention import attention_map
from segkd.ops.masked import count_images, image_mean, position_mask, unit_maps
from segkd.ops.resize import common_size, match_sizes
from segkd.structures import Batch, Outputs, Term

_STAGES = ("stage3", "stage4", "stage5")


def sad_loss(
    student: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    over_channels: Literal["sum", "max"] = "sum",
    power: float = 2.0,
    normalize: Literal["l2", "softmax"] = "l2",
    detach: bool = True,
) -> Tensor:
    """Mean over images of the squared distance of two attention maps of one network.

    Args:
        student: features (B, C, h, w) of the stage that learns.
        target: features (B, C', h', w') of the stage that it learns from, a later one as a rule.
        mask: (B, h, w) bool at the smaller of both sizes, True where positions are valid; None:
            all. Images without any valid position are excluded from the mean.
        over_channels: ``sum`` or ``max`` of the absolute values.
        power: p, applied to the absolute values; 1 or more.
        normalize: ``l2``: maps of norm 1 and the sum over positions. ``softmax``, the literal
            form: a softmax over positions and the mean over them; its gradient nearly vanishes
            and its value depends on the resolution.
        detach: the target gets no gradient.

    Returns:
        A scalar between 0 and 2, float32 or wider; a differentiable zero if no position is valid.

    Raises:
        ValueError: the mask has another size, or ``normalize`` or ``over_channels`` is unknown.
    """
    _check_choice("normalize", normalize, "l2", "softmax")
    _check_choice("over_channels", over_channels, "sum", "max")
    target = target.detach() if detach else target
    maps = match_sizes(*(attention_map(f, over_channels, power) for f in (student, target)))
    mask = position_mask(maps[0], mask)
    if normalize == "l2":
        learner, model = (unit_maps(m, mask) for m in maps)
        return image_mean((learner - model).square().sum(dim=(1, 2)), mask)
    learner, model = (_softmax_maps(m, mask) for m in maps)
    positions = mask.flatten(1).sum(1).clamp(min=1)
    return image_mean((learner - model).square().sum(dim=(1, 2)) / positions, mask)


def _softmax_maps(maps: Tensor, mask: Tensor) -> Tensor:
    """(B, 1, N): softmax over the valid positions of (B, 1, h, w), zero at the others."""
    hidden = ~mask.flatten(1).unsqueeze(1)
    low = torch.finfo(maps.dtype).min  # not −inf, so that an empty row stays finite
    return maps.flatten(2).masked_fill(hidden, low).softmax(2).masked_fill(hidden, 0)


def _check_choice(name: str, got: str, *known: str) -> None:
    if got not in known:
        raise ValueError(f"sad_loss: {name}={got!r} is unknown. Use one of: {', '.join(known)}")


class SADConfig(MethodConfig):
    """Keys of the method ``sad``."""

    weight: Weight = Field(0.5, description="factor of all terms; see docs/weights.md")
    start: NonNegativeInt = Field(
        0, description="first step at which it acts; the paper waits two thirds of the run"
    )
    pairs: list[tuple[str, str]] | None = Field(
        None,
        description="[[a, b], …]: tap a learns from b; default: of the last three stages each "
        "from the next",
    )
    over_channels: Literal["sum", "max"] = Field("sum", description="how channels are joined")
    power: float = Field(2.0, ge=1, le=8, description="p of |F|^p")
    normalize: Literal["l2", "softmax"] = Field("l2", description="softmax: literal form")
    detach: bool = Field(True, description="the second of a pair gets no gradient")


class SAD(SelfMethod[SADConfig]):
    """Terms: one per pair of taps, each a mean over images."""

    name = "sad"
    kind = "self"
    paper_weight = 0.1
    paper = "Hou et al.: Lightweight Lane Detection CNNs by Self Attention Distillation, 1908.00821"
    year = 2019
    published = "CULane F1, ENet-SAD: 70.8; plain ENet 69.9 (PytorchAutoDrive)"
    equation = "Σ_pairs mean_images Σ_i (q_a − q_b)², q = Q / ‖Q‖₂, Q = Σ_c |F_c|^p"
    cost = "two passes over the tapped features of each pair"
    conversions: ClassVar = {"ENet-SAD_Pytorch": Conversion(0.1, note="softmax, not detached")}

    def __init__(self, config: SADConfig | None = None) -> None:
        super().__init__(config)
        pairs = list(pairwise(_STAGES)) if self.config.pairs is None else self.config.pairs
        self.pairs = pairs
        if not pairs or len(set(pairs)) < len(pairs) or any(a == b for a, b in pairs):
            raise ConfigError(
                f"method 'sad': got pairs {[list(pair) for pair in pairs]}, expected at least one, "
                "no duplicates, and two different taps in each, e.g. pairs: [[stage3, stage4]]"
            )

    def bind_taps(self, student: TapNames, teacher: TapNames | None) -> None:
        if self.config.pairs is None:
            self.pairs = list(pairwise(bound_pairs(_STAGES, student, least=2)))

    @property
    def needs(self) -> Needs:
        taps = dict.fromkeys(tap for pair in self.pairs for tap in pair)
        return Needs(student=tuple(taps))

    @property
    def taps_with_gradient(self) -> tuple[str, ...]:
        """The first tap of each pair, and the second if it is not detached."""
        learners = {learner for learner, _ in self.pairs}
        return tuple(t for t in self.needs.student if t in learners or not self.config.detach)

    def self_loss(self, student: Outputs, batch: Batch, context: Context) -> dict[str, Term]:
        terms = {}
        keys = self.config
        for learner, model in self.pairs:
            features, target = student.tap(learner), student.tap(model)
            mask = context.mask_at(*common_size(features, target))
            value = sad_loss(
                features,
                target,
                mask=mask,
                over_channels=keys.over_channels,
                power=keys.power,
                normalize=keys.normalize,
                detach=keys.detach,
            )
            terms[f"{learner}_{model}"] = Term(value, count_images(mask))
        return terms
