"""AB: each neuron of the student is active where the teacher's is, whatever its value.

Heo, Lee, Yun, Choi: Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden
Neurons. AAAI 2019, arXiv 1811.03233.

    L = Σ_taps 2^-(d) · mean over valid positions and channels of
        ρ · max(0, m − s)² + (1 − ρ) · max(0, m + s)²
    ρ = 1 if t > 0 else 0,   s = r(F_s),   d = number of deeper taps,   m = margin

Taps: the last three stages by default, before their activation (``stage5:pre``), or the output
itself if it has no activation, where 0 is no boundary of a neuron. r is a 1x1 convolution with a
bias if the channels differ. Of a teacher with larger maps ρ is averaged: the share of active
neurons. The paper has two phases: first the student learns boundaries alone, then labels or soft
targets alone; they are the recipe ``streets/ab``. An entry in a single run adds the loss to others.
Public code has a batch norm in r, whose shift is the bias here; it sums over channels and positions
times 3/1000, so its weight fits one size only. Values are in units of the teacher's features: with
``scale: none`` the margin is that of the paper, in raw values.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from segkd.methods.base import BuildContext, Context, Conversion, Weight
from segkd.methods.shared.feature_scale import ScaleKeys
from segkd.methods.shared.tapped import TapListKeys, TapListMethod
from segkd.modules.adapter import channel_adapter
from segkd.ops.masked import position_mask, require_equal_shapes
from segkd.ops.resize import common_size, match_sizes
from segkd.structures import Batch, Outputs, Term

_TAPS = ("stage3:pre", "stage4:pre", "stage5:pre")


def ab_loss(
    student: Tensor, teacher: Tensor, *, mask: Tensor | None = None, margin: float = 1.0
) -> Tensor:
    """Mean over valid positions and channels of the squared distance to the right side.

    Args:
        student: values before the activation (B, C, h, w), in the teacher's channels.
        teacher: the same, (B, C, h', w'); only their signs are used.
        mask: (B, h, w) bool at the smaller of both sizes, True where positions are valid; None:
            all.
        margin: m, how far from 0 the student's values should be.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no position is valid.

    Raises:
        ValueError: the channels differ.
    """
    dtype = torch.promote_types(student.dtype, torch.float32)
    side = (teacher.detach() > 0).to(dtype) * 2 - 1
    averaged = side.shape[-2:] != common_size(student, side)
    student, side = match_sizes(student, side, mask=mask)
    require_equal_shapes(student, side)
    mask = position_mask(student, mask)
    if averaged:
        share = (1 + side) / 2
        distance = share * _hinge(margin - student) + (1 - share) * _hinge(margin + student)
    else:  # the same in half of the memory
        distance = _hinge(margin - side * student)
    total = distance.masked_fill(~mask.unsqueeze(1), 0).sum()
    return total / (mask.sum().clamp(min=1) * student.shape[1])


def _hinge(values: Tensor) -> Tensor:
    return values.clamp(min=0).square()


class ABConfig(TapListKeys, ScaleKeys):
    """Keys of the method ``ab``."""

    weight: Weight = Field(0.95, description="factor of all terms; see docs/weights.md")
    taps: list[str] | None = Field(
        None,
        description="taps of the student, from shallow to deep; default: the last three stages, "
        "before their activation",
    )
    margin: PositiveFloat = Field(1.0, description="distance from 0 that is asked for")


class AB(TapListMethod[ABConfig]):
    """Terms: one per tap of the student, each a mean over valid positions."""

    name = "ab"
    kind = "feature"
    paper = "Heo et al.: Distillation of Activation Boundaries, arXiv 1811.03233"
    year = 2019
    paper_weight = 49.152
    equation = "Σ_taps 2^-d · mean [t > 0] · max(0, m − s)² + [t ≤ 0] · max(0, m + s)², s = r(F_s)"
    cost = "a 1x1 convolution and one pass over the features, per tap"
    default_taps = _TAPS
    default_weights: Mapping[str, float] = {"stage3:pre": 0.25, "stage4:pre": 0.5, "stage5:pre": 1}
    exempt: ClassVar = {
        "perfect_student": "a margin is asked for, also where the teacher's values are nearer to 0"
    }
    conversions: ClassVar = {
        "AB CIFAR, RepDistiller": Conversion(
            3e-3, {"C_t": 1, "h": 1, "w": 1}, "of the deepest tap; 49.152 at its 256x8x8"
        ),
        "AB MIT scenes": Conversion(1e-3, {"C_t": 1, "h": 1, "w": 1}, "times its loss_multiplier"),
    }

    def _use(self, pairs: dict[str, str]) -> None:
        super()._use(pairs)
        self.default_weights = {tap: 0.5**d for d, tap in enumerate(reversed(pairs))}

    def build(self, spec: BuildContext) -> None:
        self.connectors = nn.ModuleList(
            _connector(spec.student[mine].channels, spec.teacher[theirs].channels)
            for mine, theirs in self.pairs.items()
        )

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        terms = {}
        scaled = zip(
            self.pairs, self.connectors, self.scaled(student, teacher, context), strict=True
        )
        for tap, connect, (features, target) in scaled:
            features = connect(features)
            mask = context.mask_at(*common_size(features, target))
            value = ab_loss(features, target, mask=mask, margin=self.config.margin)
            terms[tap] = Term(value, mask.sum(dtype=torch.float64))
        return terms


def _connector(in_channels: int, out_channels: int) -> nn.Module:
    """A 1x1 convolution that starts near zero, with a bias: each neuron's boundary moves freely."""
    adapter = channel_adapter(in_channels, out_channels)
    if isinstance(adapter, nn.Conv2d):
        adapter.bias = nn.Parameter(torch.zeros(out_channels))
    return adapter
