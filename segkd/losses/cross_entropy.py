"""Pixel-wise cross-entropy with class weights, label smoothing and hard example mining.

OHEM: Training Region-based Object Detectors with Online Hard Example Mining,
Shrivastava et al., CVPR 2016, arXiv 1604.03540; for pixels: Wu et al., arXiv 1605.06885.

    CE = Σ_i w[y_i] (-log p_i[y_i]) / Σ_i w[y_i]    over the valid pixels i of the batch

OHEM keeps the pixels whose p_i[y_i] is below a threshold, and at least the `keep` hardest ones.
Each process selects from its own pixels, so with OHEM the kept set (not the reduction, which is
exact) depends on how the batch is split.
"""

import math
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor

from segkd.errors import ConfigError
from segkd.losses.base import TaskLoss, TaskLossConfig
from segkd.losses.targets import target_of
from segkd.losses.upsampled import pixel_losses, upsampled_cross_entropy
from segkd.structures import Batch, Outputs, Term


class OhemConfig(BaseModel):
    """Which pixels are hard. A ``keep`` below 1 does not depend on the batch size."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    threshold: float = Field(0.7, gt=0.0, le=1.0, description="of the true class's probability")
    keep: PositiveFloat = Field(
        1 / 16, description="at least so many: below 1 a share of the valid pixels, else a number"
    )


class CrossEntropyConfig(TaskLossConfig):
    """Options of ``task.losses.cross_entropy``."""

    class_weights: list[NonNegativeFloat] | None = Field(None, description="one per class")
    background: NonNegativeFloat | None = Field(
        None, description="weight of class 0, all others have 1; e.g. 0.4 for lanes"
    )
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)
    ohem: bool | OhemConfig = Field(False, description="false, true, or {threshold, keep}")

    @model_validator(mode="after")
    def _one_kind_of_weights(self) -> Self:
        if self.class_weights is not None and self.background is not None:
            raise ValueError("give `class_weights` or `background`, not both")
        return self

    def weights(self, num_classes: int) -> list[float] | None:
        """One weight per class; None: all classes have weight 1."""
        if self.background is not None:
            return [self.background] + [1.0] * (num_classes - 1)
        return self.class_weights


class CrossEntropy(TaskLoss[CrossEntropyConfig]):
    """Mean cross-entropy over valid pixels; logits are up-sampled to the labels first.

    The Term's count is the number of pixels, or the sum of their class weights; with OHEM of the
    kept pixels. Label smoothing is weighted as in torch.

    Raises:
        ConfigError: if the number of class weights is not the number of classes.
    """

    name = "cross_entropy"
    Config = CrossEntropyConfig
    class_weights: Tensor | None

    def __init__(self, config: CrossEntropyConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        weights = config.weights(num_classes)
        if weights is not None and len(weights) != num_classes:
            raise ConfigError(
                f"task.losses.cross_entropy.class_weights has {len(weights)} numbers, but the "
                f"dataset has {num_classes} classes: give {num_classes} numbers, or remove the key"
            )
        self.register_buffer(
            "class_weights", None if weights is None else torch.tensor(weights), persistent=False
        )
        self.ohem = OhemConfig() if config.ohem is True else config.ohem or None

    def forward(self, outputs: Outputs, batch: Batch) -> Term:
        """The Term of ``outputs.logits`` (B, K, h, w) against ``batch.labels`` (B, H, W)."""
        logits, target = outputs.logits, target_of(batch)
        if self.ohem is not None:
            target = keep_hard(
                logits.detach(), target, batch.ignore_index, self.ohem.threshold, self.ohem.keep
            )
        weights = self.class_weights
        if weights is not None:
            weights = weights.to(torch.promote_types(logits.dtype, torch.float32))
        total = upsampled_cross_entropy(
            logits,
            target,
            ignore_index=batch.ignore_index,
            weight=weights,
            label_smoothing=self.config.label_smoothing,
        )
        count = self._count(target, batch.ignore_index)
        return Term(total / torch.where(count > 0, count, 1.0).to(total), count)

    def _count(self, target: Tensor, ignore_index: int) -> Tensor:
        """Pixels, or their summed class weights: float64, 0-d."""
        valid = target != ignore_index
        if self.class_weights is None:
            return valid.sum().double()
        per_pixel = self.class_weights[target.where(valid, 0)]
        return (per_pixel * valid).sum(dtype=torch.float64)


@torch.no_grad()
def keep_hard(
    logits: Tensor, target: Tensor, ignore_index: int, threshold: float = 0.7, keep: float = 1 / 16
) -> Tensor:
    """The target with easy pixels set to void.

    A pixel is kept if the probability of its true class is below ``threshold``, or if it is among
    the hardest ``keep``; ties with the last of these are kept as well.

    Args:
        logits: (B, K, h, w), up-sampled as for the loss.
        target: (B, H, W) int64, void is ``ignore_index``.
        ignore_index: the label of void pixels.
        threshold: of the true class's probability.
        keep: below 1 a share of the valid pixels, rounded up; else a number of pixels.

    Returns:
        (B, H, W) int64.
    """
    valid = target != ignore_index
    loss = pixel_losses(logits, target, ignore_index=ignore_index)
    probability = torch.exp(-loss).masked_fill(~valid, torch.inf)
    hardest = _hardest if probability.device.type == "cpu" else _hardest_in_order
    hard = probability <= hardest(probability, valid.sum(), threshold, keep)
    return target.masked_fill(~(hard & valid), ignore_index)


def _hardest(probability: Tensor, number: Tensor, threshold: float, keep: float) -> Tensor:
    """The largest probability that is kept, 0-d; infinity stands for void pixels.

    Args:
        probability: (B, H, W).
        number: of the valid pixels, 0-d.
        threshold, keep: of ``keep_hard``.
    """
    valid, below = int(number), probability < threshold
    wanted = min(valid, math.ceil(keep * valid) if keep < 1 else int(keep))
    if wanted <= int(below.sum()):
        return probability.where(below, -1).amax()
    # topk instead of kthvalue, which has no deterministic version on GPUs
    return torch.topk(probability.flatten(), wanted, largest=False, sorted=False).values.amax()


def _hardest_in_order(probability: Tensor, number: Tensor, threshold: float, keep: float) -> Tensor:
    """``_hardest`` without reading a number: a GPU sorts all pixels faster than its host waits."""
    ordered = probability.flatten().sort().values
    wanted = (keep * number.double()).ceil() if keep < 1 else number.clamp(max=int(keep))
    place = torch.maximum(wanted.long(), (ordered < threshold).sum()).view(1) - 1
    return torch.where(place < 0, -1, ordered.gather(0, place.clamp(min=0)))
