"""FreeKD: compares the details of features, as a wavelet transform finds them, within masks.

Zhang, Huang, Liu, Jiang, Cheng, Zhang: FreeKD: Knowledge Distillation via Semantic Frequency
Prompt. CVPR 2024, arXiv 2311.12079.

    L = Σ_taps Σ_levels mean over tokens k, coefficients i, channels and orientations of
        m_ki |d_s − d_t|_i,   d: details of the level,   m_k = σ(token_k · Σ_orientations d_t)

Taps: the last two stages by default. d are the details of a Haar transform of three levels; the
averages that remain ("low frequencies") are not compared. A coefficient counts if all positions
below it are valid; levels that are coarser than a map are left out. The tokens ("prompts") learn
in the first steps of the run, from the teacher alone: task loss of a linear classifier on the
features whose details were multiplied by Σ_k m_k, and the overlap of masks as in ``maskd``; then
they are frozen, and distillation begins.
The equations are those of the authors' code for detection; the paper was not at hand. There the
tensors cH, cV, cD are the levels 1, 2, 3 of the transform, each with all three orientations. It
tunes tokens through the rest of the teacher, of the averages as well, and adds a squared distance
of the features with weight 5 (here: an entry of ``fitnets``).
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from segkd.methods.base import BuildContext, Context, Conversion, Needs, Weight
from segkd.methods.shared.feature_scale import ScaleKeys
from segkd.methods.shared.tapped import TapListKeys, TapListMethod
from segkd.methods.shared.token_masks import (
    TokenKeys,
    TokenMasks,
    overlap_term,
    task_terms,
    token_masks,
)
from segkd.ops.haar import haar_levels, inverse_haar_levels, whole_blocks
from segkd.ops.masked import position_mask, require_equal_shapes
from segkd.ops.resize import common_size, match_sizes
from segkd.structures import Batch, Outputs, Term

LEVELS = 3


def freekd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    tokens: Sequence[Tensor] | None = None,
    mask: Tensor | None = None,
    levels: int = LEVELS,
) -> Tensor:
    """Sum over levels of the mean absolute difference of details, weighted by masks.

    Args:
        student: features (B, C, h, w), in the teacher's channels.
        teacher: features (B, C, h', w'); detached.
        tokens: (T, C) for each level, from fine to coarse; None: all details count the same.
        mask: (B, h, w) bool at the smaller of both sizes, True where positions are valid; None:
            all.
        levels: of the transform, at most; those whose blocks are larger than the maps are left out.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no block is valid.

    Raises:
        ValueError: the channels differ.
    """
    student, teacher = match_sizes(student, teacher.detach(), mask=mask)
    require_equal_shapes(student, teacher)
    found = detail_terms(student, teacher, position_mask(student, mask), tokens, levels)
    return torch.stack([term.value for term in found]).sum()


def detail_terms(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    tokens: Sequence[Tensor] | None = None,
    levels: int = LEVELS,
) -> list[Term]:
    """The addends of ``freekd_loss``, from fine to coarse, each a mean over valid coefficients.

    A level without any whole block of valid positions is a differentiable 0.

    Args:
        student, teacher: (B, C, h, w), 0 at invalid positions.
        mask, tokens, levels: as there.
    """
    levels = levels_within(mask, levels)
    # The transform is linear: that of the difference is the difference of both.
    _, differences = haar_levels(student - teacher, levels)
    _, targets = haar_levels(teacher, levels)
    terms = []
    for level, valid in enumerate(whole_blocks(mask, levels)):
        sizes = differences[level].abs().sum(dim=(1, 2))
        if tokens is not None:
            with torch.no_grad():
                shares = token_masks(tokens[level], targets[level].sum(dim=2)).mean(dim=1)
            sizes = sizes * shares
        count = valid.sum()
        total = sizes.masked_fill(~valid, 0).sum()
        value = total / (count.clamp(min=1) * differences[level].shape[1] * 3)
        terms.append(Term(value, count.double()))
    return terms


def levels_within(mask: Tensor, levels: int = LEVELS) -> int:
    """How many levels, 1 to ``levels``, have blocks that fit into a map of the size of a mask."""
    return max(1, min(levels, min(mask.shape[-2:]).bit_length() - 1))


class FreeKDConfig(TapListKeys, ScaleKeys, TokenKeys):
    """Keys of the method ``freekd``."""

    weight: Weight = Field(1.2, description="factor of all terms; see docs/weights.md")
    taps: list[str] | None = Field(
        None, description="taps of the student; default: the last two stages"
    )
    tokens: PositiveInt = Field(2, description="number of masks of each level")


class FreeKD(TapListMethod[FreeKDConfig]):
    """Terms: one per tap and level; tokens are trained beforehand by ``inner_loss``."""

    name = "freekd"
    kind = "feature"
    scale_free = False
    paper = "Zhang et al.: FreeKD: Distillation via Semantic Frequency Prompt, arXiv 2311.12079"
    year = 2024
    published = "Cityscapes, PSPNet-R18: +4.55 (its abstract)"
    equation = (
        "Σ_levels mean m |d_s − d_t|, d: details of a Haar transform of the features, "
        "m = σ(token · Σ_orientations d_t), the tokens learned beforehand"
    )
    cost = "two passes of additions over the tapped features; beforehand a task loss a tap more"
    default_taps = ("stage4", "stage5")
    inner_steps = 1
    conversions: ClassVar = {
        "FreeKD": Conversion(1, {}, "detection: five maps of a FPN, 6 tokens, plus FitNets' 5"),
    }

    @property
    def needs(self) -> Needs:
        return Needs(tuple(self.pairs), tuple(self.pairs.values()), labels=True, inner_labels=True)

    def build(self, spec: BuildContext) -> None:
        channels = [spec.teacher[tap].channels for tap in self.pairs.values()]
        self.adapters = self.aligned(spec)
        self.masks = nn.ModuleList(
            TokenMasks(LEVELS * self.config.tokens, number) for number in channels
        )
        self.classifiers = nn.ModuleList(
            nn.Conv2d(number, spec.num_classes, 1) for number in channels
        )

    def preparation_steps(self, total_steps: int) -> int:
        return self.config.steps_for_tokens(total_steps)

    def inner_parameters(self) -> list[nn.Parameter]:
        return [*self.masks.parameters(), *self.classifiers.parameters()]

    def inner_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, self.config.token_lr)

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        terms: dict[str, Term] = {}
        scaled = self.scaled(student, teacher, context)
        for number, (tap, (features, target)) in enumerate(zip(self.pairs, scaled, strict=True)):
            features = self.adapters[number](features)
            mask = context.mask_at(*common_size(features, target))
            features, target = match_sizes(features, target, mask=mask)
            found = detail_terms(features, target, mask, self._tokens(number))
            terms |= {f"{tap}_level{level}": term for level, term in enumerate(found, start=1)}
        return terms

    def inner_loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        terms: dict[str, Term] = {}
        scaled = self.scaled(student, teacher, context)
        for number, (tap, (features, target)) in enumerate(zip(self.pairs, scaled, strict=True)):
            size = common_size(features, target)
            mask = context.mask_at(*size)
            target, _ = match_sizes(target, features[:, :1], mask=mask)
            levels = levels_within(mask)
            low, details = haar_levels(target, levels)
            seen, tokens = [], self._tokens(number)
            for level, valid in enumerate(whole_blocks(mask, levels)):
                masks = token_masks(tokens[level], details[level].sum(dim=2))
                seen.append(details[level] * masks.sum(dim=1)[:, None, None])
                terms[f"{tap}_overlap{level + 1}"] = overlap_term(masks, valid)
            logits = self.classifiers[number](inverse_haar_levels(low, seen, size))
            own = task_terms(logits, batch, context)
            terms |= {f"{tap}_{name}": term for name, term in own.items()}
        return terms

    def _tokens(self, number: int) -> list[Tensor]:
        """The tokens (T, C) of each level at a tap, from fine to coarse."""
        masks, count = self.masks[number], self.config.tokens
        assert isinstance(masks, TokenMasks)
        return [masks.tokens[level * count : (level + 1) * count] for level in range(LEVELS)]
