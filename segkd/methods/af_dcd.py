"""Af-DCD: generates masked features, and contrasts the channel groups of small patches.

Fan, Li, Liu, Song, Yao: Augmentation-free Dense Contrastive Knowledge Distillation for
Efficient Semantic Segmentation. NeurIPS 2023, arXiv 2312.04168.

    feature   mean over valid positions and channels of (S − F_t)²,   S = G(a(F_s) · M)  (as mgd)
    contrast  mean over vectors a of max-pooled S of −log(e(a, b_a) / (e(a, b_a) + Σ_b e(a, b)))
              e(a, b) = exp(−‖a − b‖₁ / T)

A patch has 4x4 pooled positions, each with 16 vectors: its channels in 16 groups. b_a is the
teacher's vector of the same position and group, b are those of other groups in the patch.

Taps: ``head`` by default. The published runs tap the last stage, of 2048 channels, where G alone
has 75 million parameters (``tap: stage5``); they add ``kd: {}``.
The public code crops CamVid's maps to 44x44 unpooled (``pool: 1``), and fails for other sides that
are no multiples of 16 and where channels are equal. Here positions beyond the border, padding and
void belong to no patch: maxima, vectors and means are over valid positions. That code sums squares
over channels and positions, so its weight fits one size only. Wider groups have larger distances,
which is the paper's choice: with many channels the softmax is nearly a maximum.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from segkd.errors import ConfigError
from segkd.methods.base import BuildContext, Context, Conversion, Weight
from segkd.methods.shared.feature_scale import ScaleKeys
from segkd.methods.shared.masked_generation import feature_generator, generated_pair, random_keep
from segkd.methods.shared.tapped import TapKeys, TapMethod
from segkd.modules.adapter import channel_adapter
from segkd.ops.omni_contrast import omni_contrast
from segkd.ops.queued import queued
from segkd.ops.resize import common_size
from segkd.ops.squared_distance import masked_mse
from segkd.structures import Batch, Outputs, Term

_GROUPS = 16
_FEATURE = 2e-6 * 2048 * 64 * 128  # the published weight of the sum, for the mean
_WEIGHTS = {"feature": 1.0, "contrast": 0.005 * _GROUPS / _FEATURE}  # published, side by side


def af_dcd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    keep: Tensor | None = None,
    generate: Callable[[Tensor], Tensor] = lambda x: x,
    groups: int = _GROUPS,
    temperature: float = 0.07,
    pool: int = 4,
    patch: int = 4,
    weights: Mapping[str, float] = _WEIGHTS,
) -> Tensor:
    """Weighted sum of the feature and the contrast term.

    Args:
        student: features (B, C, h, w), aligned to the teacher's channels.
        teacher: features (B, C, h', w'); detached.
        mask: (B, h, w) bool at the smaller of both sizes, True where positions are valid; None:
            all. Others are zero before ``generate``, and in neither term.
        keep: (B, h, w) bool, the random mask: False positions are zero before ``generate``; None:
            all are kept. See ``segkd.methods.shared.masked_generation``.
        generate: the generator, (B, C, h, w) -> (B, C, h, w).
        groups: of channels, at least 2; divides C.
        temperature: T.
        pool: side of the cells whose maxima are contrasted.
        patch: side of a patch, in cells.
        weights: of ``feature`` and ``contrast``; 0 if missing.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no position is valid.

    Raises:
        ValueError: the channels differ, or ``groups`` does not divide them.
    """
    if groups < 2 or student.shape[1] % groups:
        raise ValueError(f"groups={groups} for {student.shape[1]} channels: expected a divisor ≥ 2")
    pair = generated_pair(student, teacher, mask, keep, generate)
    terms = _terms(*pair, groups, temperature, pool, patch)
    values = [weights.get(name, 0.0) * term.value for name, term in terms.items()]
    return sum(values, values[0].new_zeros(()))


def _terms(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    groups: int,
    temperature: float,
    pool: int,
    patch: int,
) -> dict[str, Term]:
    """Both terms by name, of maps of one size."""
    feature = Term(masked_mse(student, teacher, mask), mask.sum(dtype=torch.float64))
    (own, keep), (other, _) = (_patches(maps, mask, pool, patch) for maps in (student, teacher))
    total = omni_contrast(own, other, keep, groups=groups, temperature=temperature)
    vectors = keep.sum(dtype=torch.float64) * groups
    contrast = Term(total / vectors.clamp(min=1).to(total.dtype), vectors)
    return {"feature": feature, "contrast": contrast}


def _patches(maps: Tensor, mask: Tensor, pool: int, patch: int) -> tuple[Tensor, Tensor]:
    """Maxima over the valid positions of cells, patch by patch.

    The last cells and patches may reach beyond the border, where nothing is valid.

    Args:
        maps: (B, C, h, w).
        mask: (B, h, w) bool, True where positions are valid.
        pool: side of a cell.
        patch: side of a patch, in cells.

    Returns:
        (P, patch², C), 0 where no position is valid, and (P, patch²) bool, False there.
    """
    side = pool * patch
    beyond = (0, -maps.shape[-1] % side, 0, -maps.shape[-2] % side)
    visible = F.pad(mask.unsqueeze(1).to(maps.dtype), beyond)
    maps = F.pad(maps.masked_fill(~mask.unsqueeze(1), -torch.inf), beyond, value=-torch.inf)
    keep = F.max_pool2d(visible, pool) > 0
    cells = F.max_pool2d(maps, pool).masked_fill(~keep, 0)

    def split(values: Tensor) -> Tensor:
        images, channels, rows, columns = values.shape
        grid = (images, channels, rows // patch, patch, columns // patch, patch)
        places = values.view(grid).permute(0, 2, 4, 3, 5, 1)
        return places.reshape(-1, patch * patch, channels)

    return split(cells), split(keep).squeeze(2)


class AfDCDConfig(TapKeys, ScaleKeys):
    """Keys of the method ``af_dcd``."""

    weight: Weight = Field(0.5, description="factor of all terms; see docs/weights.md")
    masked: float = Field(0.75, ge=0, lt=1, description="share of positions that are hidden")
    width: NonNegativeInt = Field(
        0, description="hidden channels of the generator; 0: the teacher's, at most 512"
    )
    groups: int | None = Field(
        None,
        ge=2,
        description="groups of channels; default: 16, or the next smaller number that divides the "
        "teacher's channels",
    )
    temperature: PositiveFloat = Field(0.07, description="T of the softmax over vectors")
    pool: PositiveInt = Field(4, description="side of the cells whose maxima are contrasted")
    patch: PositiveInt = Field(4, description="side of a patch, in cells")


class AfDCD(TapMethod[AfDCDConfig]):
    """Terms ``feature``, a mean over valid positions, and ``contrast``, a mean over vectors."""

    name = "af_dcd"
    kind = "feature"
    paper_weight = _FEATURE
    scale_free = False
    paper = "Fan et al.: Augmentation-free Dense Contrastive KD, arXiv 2312.04168"
    year = 2023
    published = "Cityscapes, DeepLabV3-R18: 74.21 → 77.03, with kd (its README)"
    equation = (
        "mean (S − F_t)² + w · mean_a −log(e(a, b_a) / (e(a, b_a) + Σ_b e(a, b))), S generated "
        "from the student's masked features, a: a group of its channels at a position, b_a the "
        "teacher's, b: other groups of the teacher in the patch, e(a, b) = exp(−‖a − b‖₁ / T)"
    )
    cost = "two 3x3 convolutions at the teacher's channels, and 16·N·C_t absolute differences"
    default_weights: Mapping[str, float] = _WEIGHTS
    conversions: ClassVar = {
        "Af-DCD feature": Conversion(
            2e-6, {"C_t": 1, "h": 1, "w": 1}, "`weights.feature`; 8e-6 on CamVid"
        ),
        "Af-DCD contrast": Conversion(
            0.005 * _GROUPS, note="`weights.contrast`; 0.005 times 16 groups, 0.01 on CamVid"
        ),
    }

    def __init__(self, config: AfDCDConfig | None = None) -> None:
        super().__init__(config)
        self.adapter: nn.Module = nn.Identity()
        self.channels, self.groups = 0, self.config.groups or _GROUPS

    def build(self, spec: BuildContext) -> None:
        """Creates adapter and generator.

        Raises:
            ConfigError: no number of groups, or not that of the config, divides the channels.
        """
        self.channels = spec.teacher[self.teacher_tap].channels
        self.groups = self._dividing()
        mine = spec.student[self.config.tap].channels
        self.adapter = channel_adapter(mine, self.channels, gain=1.0)
        self.generator = feature_generator(self.channels, self.config.width)

    def _dividing(self) -> int:
        """The number of groups. Raises ConfigError."""
        working = [n for n in range(2, self.channels + 1) if self.channels % n == 0]
        wanted = self.config.groups
        usual = [wanted] if wanted else [n for n in working if n <= _GROUPS]
        if usual and usual[-1] in working:
            return usual[-1]
        number = f"groups is {wanted}" if wanted else f"no groups from 2 to {_GROUPS} are possible"
        way = f"Set groups to {' or '.join(map(str, working))}, or set" if working else "Set"
        raise ConfigError(
            f"method '{self.name}': {number}, but '{self.teacher_tap}' of the teacher has "
            f"{self.channels} channels. {way} teacher_tap to a value of other channels"
        )

    def notes(self, total_steps: int, images: int) -> list[str]:
        """Says so where 16 groups were not possible."""
        if self.config.groups or self.groups == _GROUPS:
            return []
        return [f"{self.groups} groups: {_GROUPS} do not divide {self.channels} channels"]

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        features, target = self.scaled(student, teacher, context)
        features = self.adapter(features)
        size, keys = common_size(features, target), self.config
        mask = context.mask_at(*size)
        keep = random_keep(context.image_generators, size, keys.masked)
        keep = queued(keep, mask.device)
        pair = generated_pair(features, target, mask, keep, self.generator)
        return _terms(*pair, self.groups, keys.temperature, keys.pool, keys.patch)
