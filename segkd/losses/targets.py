"""Logits and labels at one size, the inputs of every task loss."""

from torch import Tensor

from segkd.errors import DataError
from segkd.losses.upsampled import upsampled
from segkd.structures import Batch, Outputs


def logits_and_target(outputs: Outputs, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits up-sampled to the labels, and labels in which padding is void.

    Up-sampling is bilinear with ``align_corners=False``. Log-probabilities work as logits: they
    differ by a constant per position, which stays one under interpolation and cancels in softmax.

    Args:
        outputs: logits (B, K, h, w).
        batch: labels (B, H, W).

    Returns:
        Logits (B, K, H, W), half types raised to float32, and int64 targets (B, H, W) that are
        ``batch.ignore_index`` wherever ``batch.valid`` is False.

    Raises:
        DataError: if the batch has no labels.
    """
    target = target_of(batch)
    return upsampled(outputs.logits, target.shape[1:]), target


def target_of(batch: Batch) -> Tensor:
    """(B, H, W) int64: labels, ``batch.ignore_index`` wherever ``batch.valid`` is False.

    Raises:
        DataError: if the batch has no labels.
    """
    if batch.labels is None:
        raise DataError(
            "a task loss needs labels, but the batch has none: use a labelled training split, "
            "or set task.weight=0 to learn from the teacher only"
        )
    return batch.labels.long().masked_fill(~batch.valid, batch.ignore_index)
