"""Divides features by the scale of the teacher's, so that the weight of a loss has one meaning.

Networks differ in this scale: the mean square of the last feature is 4.6 in one FPN and 0.5 in a
DeepLabV3. Without the division a squared difference would count ten times as much in one as in
the other.
"""

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from segkd.methods.base import Context, MethodConfig

_DEAD = 1e-12  # mean square
_MEMORY = 100  # batches: a plain mean over so many, then an exponential one


class ScaleKeys(MethodConfig):
    """Key of the methods whose loss depends on the scale of features."""

    scale: Literal["teacher", "none"] = Field(
        "teacher",
        description="both sides are divided by the root mean square of the teacher's features; "
        "none: as they are, the default with `weight: paper`",
    )

    @model_validator(mode="before")
    @classmethod
    def _published_weights_are_of_raw_features(cls, keys: Any) -> Any:
        if isinstance(keys, dict) and keys.get("weight") == "paper":
            return {"scale": "none", **keys}
        return keys


class FeatureScale(nn.Module):
    """Divides the features of both sides by the root mean square of the teacher's.

    The mean square is taken over the valid positions and channels of the global batch, and
    averaged over steps in a buffer, so it is checkpointed. The first batch is divided by its own.

    Args:
        enabled: False leaves the features unchanged (``scale: none``).
    """

    mean_square: Tensor
    batches: Tensor

    def __init__(self, enabled: bool = True) -> None:
        super().__init__()
        self.enabled = enabled
        if enabled:
            self.register_buffer("mean_square", torch.zeros((), dtype=torch.float64))
            self.register_buffer("batches", torch.zeros((), dtype=torch.float64))

    def forward(self, student: Tensor, teacher: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Divides both maps by the same number.

        Args:
            student: (B, C_s, h, w).
            teacher: (B, C_t, h', w'); determines the scale, without gradient.
            context: of the step; gives the valid positions and sums over processes.

        Returns:
            Both maps, divided, float32 or wider.
        """
        if not self.enabled:
            return student, teacher
        factor = self._inverse(teacher.detach(), context)
        return _times(student, factor), _times(teacher, factor)

    def same(self, values: Tensor | None) -> Tensor | None:
        """Divides values of any shape in the teacher's unit, e.g. a margin, like its features."""
        if values is None or not self.enabled:
            return values
        return _times(values, _inverse_root(self.mean_square))

    def observe(self, teacher: Tensor, context: Context) -> None:
        """Takes a batch (B, C_t, h, w) into the mean square, for ``same`` without scaled maps."""
        if self.enabled:
            self._inverse(teacher.detach(), context)

    @torch.no_grad()
    def _inverse(self, maps: Tensor, context: Context) -> Tensor:
        """One over the root mean square, after this batch has entered the running mean."""
        mask = context.mask_at(*maps.shape[-2:])
        # Norms over channels first: no copy of the maps is masked or raised to float64.
        squares = torch.linalg.vector_norm(maps, dim=1, dtype=torch.float64).square()
        sums = torch.stack(
            [squares.masked_fill(~mask, 0).sum(), mask.sum(dtype=torch.float64) * maps.shape[1]]
        )
        total, count = context.all_sum(sums)
        known = count > 0
        batches = self.batches + known
        now = total / count.clamp(min=1)
        mean = self.mean_square + known * (now - self.mean_square) / batches.clamp(1, _MEMORY)
        self.batches.copy_(batches)
        self.mean_square.copy_(mean)
        return _inverse_root(mean)


def _inverse_root(mean: Tensor) -> Tensor:
    """1 / sqrt(mean); 1 if the features are all zero, which have no scale."""
    return torch.where(mean > _DEAD, mean, 1.0).rsqrt()


def _times(maps: Tensor, factor: Tensor) -> Tensor:
    dtype = torch.promote_types(maps.dtype, torch.float32)
    return maps * factor.to(dtype)
