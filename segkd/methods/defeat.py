"""DeFeat: features are regressed apart on objects and on background, each with its own weight.

Guo, Han, Wang, Wu, Chen, Xu, Xu: Distilling Object Detectors via Decoupled Features. CVPR 2021,
arXiv 2103.14475.

    L = Σ_{side: foreground, background} w_side · Σ_i u_i · mean_c (r(F_s) − F_t)² / Σ_i u_i
    i over the side's valid positions;  u = 1, or with ``regions`` 1 / area of i's class region

Taps: ``head`` by default; r is a 1x1 convolution if the channels differ. A position is foreground
if any pixel in its cell is, so thin lanes survive the stride; void pixels are on neither side.
The paper detects: its foreground is the boxes, r a 3x3 convolution per pyramid level, the sum is
halved, and the head's class scores are distilled on both sides as well (here: ``kd`` beside it).
Lanes are such a foreground. Where all is labelled, as in streets, the two sides mean little;
there ``regions`` lets each class of an image weigh the same within its side.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt
from torch import Tensor

from segkd.errors import ConfigError
from segkd.methods.base import Context, Conversion, MethodConfig, Spec
from segkd.modules.tapped import TapKeys, TapMethod
from segkd.ops.masked import position_mask, require_equal_shapes
from segkd.ops.resize import common_size, match_sizes
from segkd.structures import Batch, Outputs, Term


def defeat_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    foreground: Tensor,
    mask: Tensor | None = None,
    regions: Tensor | None = None,
    foreground_weight: float = 1.5,
    background_weight: float = 6.0,
) -> Tensor:
    """Weighted sum of the mean squared differences on foreground and on background.

    Args:
        student: features (B, C, h, w), in the teacher's channels.
        teacher: features (B, C, h', w'); without gradient.
        foreground: (B, h, w) bool at the smaller of both sizes.
        mask: (B, h, w) bool, True where positions are valid; None: all.
        regions: (B, h, w) int64, ids from 0 at valid positions, e.g. labels: each region of an
            image then weighs the same within its side; None: each position does.
        foreground_weight, background_weight: w of both sides.

    Returns:
        A scalar, float32 or wider; a side without valid positions adds 0 with a graph.

    Raises:
        ValueError: the channels differ, or a mask has another shape.
    """
    if regions is not None:
        regions = regions.masked_fill(~position_mask(regions.unsqueeze(1), mask), 0)
    number = 1 if regions is None else int(regions.max()) + 1
    terms = _terms(student, teacher, foreground, mask, regions, number)
    inside, outside = terms["foreground"].value, terms["background"].value
    return foreground_weight * inside + background_weight * outside


def _terms(
    student: Tensor,
    teacher: Tensor,
    foreground: Tensor,
    mask: Tensor | None,
    regions: Tensor | None,
    number: int,
) -> dict[str, Term]:
    """Both sides by name; they count positions or, with ``number`` region ids, regions."""
    student, teacher = match_sizes(student, teacher.detach())
    require_equal_shapes(student, teacher)
    mask, foreground = position_mask(student, mask), position_mask(student, foreground)
    distance = (student - teacher).masked_fill(~mask.unsqueeze(1), 0).square().mean(dim=1)
    terms = {}
    for name, side in (("foreground", mask & foreground), ("background", mask & ~foreground)):
        shares = side.double()
        if regions is not None:
            ids = position_mask(student, regions).masked_fill(~side, number).flatten(1)
            shares = shares / _areas(ids, number).gather(1, ids).view_as(side)
        count = shares.sum()
        mean = (distance * shares.to(distance.dtype)).sum() / count.clamp(min=0.5).to(distance)
        terms[name] = Term(mean, count)  # a count is 0 or, up to rounding, at least 1
    return terms


def _areas(ids: Tensor, number: int) -> Tensor:
    """How often an image has each id: (B, N) -> (B, number + 1); the last one stands for void."""
    areas = ids.new_zeros(ids.shape[0], number + 1)
    return areas.scatter_add_(1, ids, torch.ones_like(ids))


class DeFeat(TapMethod):
    name = "defeat"
    kind = "feature"
    needs_labels = True
    paper = "Guo et al.: Distilling Object Detectors via Decoupled Features, arXiv 2103.14475"
    equation = "Σ_{foreground, background} w · mean_{its positions, channels} (r(F_s) − F_t)²"
    cost = "a 1x1 convolution and one pass over the features"
    default_weights: ClassVar = {"foreground": 1.5, "background": 6.0}
    conversions: ClassVar = {
        "DeFeat VOC foreground": Conversion(1.5, note="3, halved; `weights.foreground`"),
        "DeFeat VOC background": Conversion(6, note="12, halved; `weights.background`"),
    }

    class Config(TapKeys, MethodConfig):
        foreground: list[NonNegativeInt] = Field(
            [], description="class ids; default: in each image those below its mean class area"
        )
        regions: bool = Field(False, description="classes of an image weigh the same in a side")

    def build(self, spec: Spec) -> None:
        self.number = spec.num_classes
        unknown = [label for label in self.config.foreground if label >= self.number]
        if unknown:
            raise ConfigError(
                f"method 'defeat': foreground has {unknown}, but the {self.number} classes have "
                f"the ids 0 to {self.number - 1}. Name only those"
            )
        self.regressor = self.aligned(spec)

    def loss(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, context: Context
    ) -> dict[str, Term]:
        features, target = self.tapped(student, teacher)
        size = common_size(features, target)
        labels = context.labels_at(*size)
        mask = context.mask_at(*size) & (labels != batch.ignore_index)
        marked = self._marked(context.labels_at(*batch.labels.shape[-2:]), batch.ignore_index)
        highest = F.adaptive_max_pool2d(marked.float().unsqueeze(1), size).squeeze(1).long()
        regions = torch.where(highest > 0, highest - 1, labels) if self.config.regions else None
        return _terms(self.regressor(features), target, highest > 0, mask, regions, self.number)

    def _marked(self, labels: Tensor, void: int) -> Tensor:
        """1 + label at foreground pixels, else 0: (B, H, W)."""
        ids = labels.masked_fill(labels == void, self.number).flatten(1)
        if self.config.foreground:
            chosen = torch.isin(ids, ids.new_tensor(self.config.foreground))
        else:
            areas = _areas(ids, self.number)
            areas[:, self.number] = 0
            classes = (areas > 0).sum(1, keepdim=True)
            small = (areas > 0) & (areas * classes < areas.sum(1, keepdim=True))
            chosen = small.gather(1, ids)
        return ((ids + 1) * chosen).view_as(labels)
