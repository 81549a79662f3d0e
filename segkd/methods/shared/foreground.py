"""Methods that weigh foreground and background separately."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn
from typing_extensions import TypeVar

from segkd.errors import ConfigError
from segkd.methods.base import BuildContext, Context, nearest
from segkd.methods.shared.feature_scale import ScaleKeys
from segkd.methods.shared.tapped import TapKeys, TapMethod
from segkd.ops.foreground import marked_foreground, side_shares
from segkd.ops.masked import position_mask
from segkd.ops.resize import match_sizes
from segkd.structures import Batch, Outputs, Term


@dataclass(frozen=True)
class Sides:
    """Foreground and background of a batch at feature scale.

    Attributes:
        mask: (B, h, w) bool, the positions of either side.
        foreground: (B, h, w) bool.
        regions: (B, h, w) int64, ids below ``number`` within the mask; None: all positions weigh
            the same.
        number: of region ids.
    """

    mask: Tensor
    foreground: Tensor
    regions: Tensor | None = None
    number: int = 1

    @classmethod
    def of_maps(
        cls, maps: Tensor, foreground: Tensor, mask: Tensor | None, regions: Tensor | None
    ) -> "Sides":
        """The sides of maps (B, C, h, w).

        Raises:
            ValueError: a mask has another shape than the maps' positions.
        """
        mask, foreground = position_mask(maps, mask), position_mask(maps, foreground)
        if regions is None:
            return cls(mask, foreground)
        regions = position_mask(maps, regions).masked_fill(~mask, 0)
        return cls(mask, foreground, regions, int(regions.max()) + 1)

    def terms(self, distance: Tensor) -> dict[str, Term]:
        """Means of ``distance`` (B, h, w) over the positions, or the regions, of each side."""
        found = {}
        for name, side in (
            ("foreground", self.mask & self.foreground),
            ("background", self.mask & ~self.foreground),
        ):
            shares = side_shares(side, self.regions, self.number)
            count = shares.sum()
            total = (distance * shares.to(distance.dtype)).sum()
            # a count is 0 or, up to rounding, at least 1
            found[name] = Term(total / count.clamp(min=0.5).to(distance), count)
        return found


class ForegroundKeys(TapKeys, ScaleKeys):
    """Keys of a ``ForegroundMethod``."""

    foreground: list[NonNegativeInt] = Field(
        [], description="class ids; default: in each image those below its mean class area"
    )
    regions: bool = Field(False, description="classes of an image weigh the same in a side")


ForegroundT = TypeVar("ForegroundT", bound=ForegroundKeys, default=ForegroundKeys, covariant=True)


class ForegroundMethod(TapMethod[ForegroundT]):
    """Compares one tap of both networks on foreground and on background."""

    needs_labels = True
    regressor: nn.Module
    exempt: ClassVar = {"mask_not_padding": "a position without a label belongs to neither side"}

    def build(self, spec: BuildContext) -> None:
        """Creates the adapter of the student's channels.

        Raises:
            ConfigError: ``foreground`` names a class that does not exist.
        """
        self.number = spec.num_classes
        unknown = [label for label in self.config.foreground if label >= self.number]
        if unknown:
            raise ConfigError(
                f"method '{self.name}': foreground has {unknown}, but the {self.number} classes "
                f"have the ids 0 to {self.number - 1}. Name only those"
            )
        self.regressor = self.aligned(spec)

    def regressed(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> tuple[Tensor, Tensor, Sides]:
        """Maps of student and teacher, (B, C_t, h, w) each, and their sides."""
        features, target = self.scaled(student, teacher, context)
        features, target = match_sizes(self.regressor(features), target)
        height, width = features.shape[-2:]
        return features, target, self.sides(batch, context, (height, width))

    def sides(self, batch: Batch, context: Context, size: tuple[int, int]) -> Sides:
        """Both sides at size (h, w): a cell with one pixel of foreground is foreground."""
        labels = context.labels_at(*size)
        whole = context.labels_at(*batch.not_padding.shape[-2:])
        marked = marked_foreground(whole, self.number, batch.ignore_index, self.config.foreground)
        highest = F.adaptive_max_pool2d(marked.float().unsqueeze(1), size).squeeze(1).long()
        foreground, regions = highest > 0, None
        # A cell of a thin lane counts also where the pixel in its middle is void.
        known = context.mask_at(*size) & (labels != batch.ignore_index)
        mask = known | (foreground & nearest(batch.not_padding, *size))
        if self.config.regions:
            regions = torch.where(foreground, highest - 1, labels).masked_fill(~mask, 0)
        return Sides(mask, foreground, regions, self.number)
