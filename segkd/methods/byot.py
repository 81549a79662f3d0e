"""Be Your Own Teacher: exits at earlier stages learn from labels and from the final output.

Zhang, Song, Gao, Chen, Bao, Ma: Be Your Own Teacher: Improve the Performance of Convolutional
Neural Networks via Self Distillation. ICCV 2019, arXiv 1905.08094.

    L = Σ_exits [ task(z_e) + α T² · mean over pixels of KL(p_end ‖ p_e) + λ · mean (F_e − F_end)² ]
    F_e = 3x3 convolution, norm, ReLU on a stage;  z_e = 1x1 convolution of F_e;  p = softmax(z / T)

Taps: the three stages before the student's deepest; its ``head`` (F_end) and ``logits`` (z_end),
both detached. The exits train the stages below them and are removed afterwards. The paper has the
factor (1 − α) for the exits' task losses: use ``weight: 0.9`` and ``kd_…: 0.111`` for its α = 0.1.
Its bottlenecks halve the map down to the size of F_end; here maps are compared at the smaller of
both sizes. It sums squares over channels and positions, so its λ fits one size only.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from segkd.methods.base import (
    BuildContext,
    Context,
    Conversion,
    Needs,
    SelfMethod,
    TapNames,
    Weight,
)
from segkd.methods.shared.feature_scale import FeatureScale, ScaleKeys
from segkd.methods.shared.tapped import bound_pairs, paired_taps
from segkd.modules.masked_norm import MaskedGroupNorm
from segkd.ops.masked import masked_mse, position_mask
from segkd.ops.resize import common_size, match_sizes
from segkd.ops.softmax_kl import softmax_kl
from segkd.structures import Batch, Outputs, Term

_TAPS = ("stage2", "stage3", "stage4")
_WEIGHTS = {"kd": 0.1, "feature": 0.1}


def byot_loss(
    students: Sequence[Tensor],
    deepest: Tensor,
    *,
    masks: Sequence[Tensor | None] | None = None,
    temperature: float = 3.0,
) -> Tensor:
    """Sum over exits of the mean over valid pixels of T² · KL(deepest ‖ exit) over the classes.

    Args:
        students: logits (B, K, h_e, w_e) of the exits.
        deepest: logits (B, K, h, w) at the network's end; detached.
        masks: for each exit (B, h', w') bool at the smaller of both sizes, True where pixels are
            valid; None: all.
        temperature: T.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no pixel is valid.

    Raises:
        ValueError: a mask has another shape, or the number of masks is not that of exits.
    """
    pairs = zip(students, masks or [None] * len(students), strict=True)
    values = [_exit_loss(logits, deepest, mask, temperature) for logits, mask in pairs]
    return sum(values, deepest.new_zeros(()))


def _exit_loss(student: Tensor, deepest: Tensor, mask: Tensor | None, temperature: float) -> Tensor:
    student, deepest = match_sizes(student, deepest.detach(), mask=mask)
    mask = position_mask(student, mask)
    total = softmax_kl(student, deepest, mask.unsqueeze(1), dim=1, temperature=temperature)
    return total / mask.sum().clamp(min=1)


class Exit(nn.Module):
    """Features and logits from an earlier stage, unaffected by the padding of a crop.

    Args:
        in_channels: channels of the stage.
        channels: channels of the network's final features.
        num_classes: K.
    """

    def __init__(self, in_channels: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.bottleneck = nn.Conv2d(in_channels, channels, kernel_size=3, padding=1, bias=False)
        self.norm = MaskedGroupNorm(channels)
        self.classifier = nn.Conv2d(channels, num_classes, kernel_size=1)
        nn.init.kaiming_normal_(self.bottleneck.weight)

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, channels, h, w) and logits (B, K, h, w) of a stage.

        Args:
            features: (B, in_channels, h, w).
            mask: (B, h, w) bool, True where positions are valid.
        """
        features = features.masked_fill(~mask.unsqueeze(1), 0)
        features = self.norm(self.bottleneck(features), mask).relu()
        return features, self.classifier(features)


class BYOTConfig(ScaleKeys):
    """Keys of the method ``byot``."""

    weight: Weight = Field(0.8, description="factor of all terms; see docs/weights.md")
    taps: list[str] | None = Field(
        None, description="stages with an exit; default: the three before the deepest"
    )
    head: str = Field("head", description="features at the network's end")
    temperature: PositiveFloat = Field(3.0, description="T of both softmaxes")


class BYOT(SelfMethod[BYOTConfig]):
    """Terms per exit: the task losses, and ``kd_TAP``, ``feature_TAP``, means over positions."""

    name = "byot"
    kind = "self"
    scale_free = False  # 3x3 convolutions
    paper = "Zhang et al.: Be Your Own Teacher, arXiv 1905.08094"
    year = 2019
    equation = "Σ_exits task(z_e) + α T² mean_pixels KL(p_end ‖ p_e) + λ mean (F_e − F_end)²"
    cost = "per exit a 3x3 convolution to the head's channels and the task loss"
    default_weights: Mapping[str, float] = {
        f"{kind}_{tap}": weight for kind, weight in _WEIGHTS.items() for tap in _TAPS
    }
    conversions: ClassVar = {
        "BYOT kd": Conversion(0.1, note="T 3; `weights.kd_…`"),
        "BYOT feature": Conversion(1e-6, {"N": 1, "C_s": 1}, "`weights.feature_…`; pooled"),
        "mmrazor": Conversion(
            0.7, note="`weight`; kd 0.3/0.7, T 3; no factor for its feature root"
        ),
    }

    def __init__(self, config: BYOTConfig | None = None) -> None:
        super().__init__(config)
        self.feature_scale = FeatureScale(self.config.scale == "teacher")
        taps = _TAPS if self.config.taps is None else self.config.taps
        self._use(list(paired_taps(taps, (), self.name)))  # refuses an empty list and duplicates

    def bind_taps(self, student: TapNames, teacher: TapNames | None) -> None:
        if self.config.taps is None:
            self._use(list(bound_pairs(_TAPS, student)))

    def _use(self, taps: list[str]) -> None:
        self.taps = taps
        self.default_weights = {f"{k}_{tap}": w for k, w in _WEIGHTS.items() for tap in taps}

    @property
    def needs(self) -> Needs:
        return Needs(student=(*self.taps, self.config.head, "logits"), labels=True)

    @property
    def taps_with_gradient(self) -> tuple[str, ...]:
        return tuple(self.taps)

    def build(self, spec: BuildContext) -> None:
        channels = spec.student[self.config.head].channels
        self.exits = nn.ModuleList(
            Exit(spec.student[tap].channels, channels, spec.num_classes) for tap in self.taps
        )

    def self_loss(self, student: Outputs, batch: Batch, context: Context) -> dict[str, Term]:
        end, deepest = student.tap(self.config.head).detach(), student.logits.detach()
        # An exit's features are normalised: only the target has a scale.
        _, end = self.feature_scale(end, end, context)
        terms: dict[str, Term] = {}
        assert context.task_loss is not None  # set by the engine
        for tap, branch in zip(self.taps, self.exits, strict=True):
            features, logits = branch(
                student.tap(tap), context.mask_at(*student.tap(tap).shape[-2:])
            )
            task = context.task_loss(Outputs(logits), batch)
            terms |= {f"{name}_{tap}": term for name, term in task.items()}
            mask = context.mask_at(*common_size(logits, deepest))
            value = _exit_loss(logits, deepest, mask, self.config.temperature)
            terms[f"kd_{tap}"] = Term(value, mask.sum(dtype=torch.float64))
            mask = context.mask_at(*common_size(features, end))
            features, target = match_sizes(features, end)
            value = masked_mse(features, target, mask)
            terms[f"feature_{tap}"] = Term(value, mask.sum(dtype=torch.float64))
        return terms
