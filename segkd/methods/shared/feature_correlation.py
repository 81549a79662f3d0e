"""One minus the correlation of two maps, at positions and within channels; a module of features."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from segkd.methods.base import Context
from segkd.methods.shared.feature_scale import FeatureScale
from segkd.modules.adapter import channel_adapter
from segkd.ops.correlation import class_correlation, pixel_correlation
from segkd.ops.masked import position_mask, require_equal_shapes
from segkd.ops.resize import common_size, match_sizes
from segkd.structures import Term

_EPS = 1e-6  # added to variances of features, in the unit of the teacher's mean square


def feature_correlation_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    inter_weight: float = 1.0,
    intra_weight: float = 1.0,
    eps: float = _EPS,
    all_sum: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """ι · (1 − correlation at positions) + κ · (1 − correlation within channels), of features.

    Args:
        student: features (B, C, h, w).
        teacher: features (B, C, h', w'); detached.
        mask, all_sum: as of ``dist_loss``.
        inter_weight: ι.
        intra_weight: κ.
        eps: added to the variances of features.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no position is valid.

    Raises:
        ValueError: the channels differ.
    """
    student, teacher, mask = matched(student, teacher, mask)
    require_equal_shapes(student, teacher)
    inter = inter_distance(student, teacher, mask, eps) * mask.sum()
    inter, pixels = all_sum(torch.stack([inter, mask.sum().to(inter.dtype)]))
    intra = intra_distance(student, teacher, mask, eps, all_sum)
    return inter_weight * inter / pixels.clamp(min=1) + intra_weight * intra


class FeatureCorrelation(nn.Module):
    """Terms ``feature_inter``, ``feature_intra`` of a tap; channels are aligned if they differ."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = FeatureScale()
        self.adapter: nn.Module = nn.Identity()

    def build(self, in_channels: int, out_channels: int) -> None:
        """Makes the adapter; its gain is 1, as a correlation does not see the scale."""
        self.adapter = channel_adapter(in_channels, out_channels, gain=1.0)

    def forward(self, student: Tensor, teacher: Tensor, context: Context) -> dict[str, Term]:
        """Both terms.

        Args:
            student: features (B, C_s, h, w).
            teacher: features (B, C_t, h', w'); detached.
            context: of the step.
        """
        maps, target = self.scale(student, teacher.detach(), context)
        mask = context.mask_at(*common_size(maps, target))
        found = matched(self.adapter(maps), target, mask)
        return {
            "feature_inter": Term(inter_distance(*found, _EPS), mask.sum(dtype=torch.float64)),
            "feature_intra": Term(intra_distance(*found, _EPS, context.all_sum)),
        }


def matched(student: Tensor, teacher: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Both maps (B, C, h, w) at their common size, and the mask; all valid if it is None."""
    student, teacher = match_sizes(student, teacher.detach(), mask=mask)
    return student, teacher, position_mask(student, mask)


def inter_distance(student: Tensor, teacher: Tensor, mask: Tensor, eps: float) -> Tensor:
    """1 − ρ over channels of maps (B, C, h, w): mean over valid positions here; 0 without any."""
    distance = 1 - pixel_correlation(student, teacher, eps=eps)
    return distance.masked_fill(~mask, 0).sum() / mask.sum().clamp(min=1)


def intra_distance(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    eps: float,
    all_sum: Callable[[Tensor], Tensor],
) -> Tensor:
    """1 − ρ of each channel of (B, C, h, w) over the positions of all processes: their mean."""
    correlation, pixels = class_correlation(student, teacher, mask, eps=eps, all_sum=all_sum)
    return (1 - correlation).mean() * (pixels > 0)
