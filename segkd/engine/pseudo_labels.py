"""Pseudo labels of unlabelled images: the teacher's confident classes."""

import torch
from torch import Tensor

from segkd.methods.base import Method, nearest
from segkd.structures import Batch, Outputs


def takes_pseudo_labels(method: Method) -> bool:
    """Whether a method that needs labels gets pseudo labels; else it skips unlabelled images."""
    return bool(method.needs.teacher) and method.config.pseudo_labels is not None


def batch_for(method: Method, batch: Batch, teacher: Outputs | None) -> Batch:
    """The batch as a method receives it.

    For a method that needs labels, those of unlabelled images are the teacher's confident classes
    and void elsewhere; without pseudo labels these images count as padding. So do, for a method
    with a teacher, pixels about which a black box says nothing.
    """
    if teacher is not None and teacher.known is not None and method.needs.teacher:
        known = nearest(teacher.known, *batch.not_padding.shape[1:])
        batch = batch.replace(not_padding=batch.not_padding & known)
    if batch.labelled is None or batch.labels is None or not method.needs.labels:
        return batch
    known = batch.labelled[:, None, None]
    threshold = method.config.pseudo_labels
    if teacher is None or threshold is None or not takes_pseudo_labels(method):
        return batch.replace(not_padding=batch.not_padding & known, labelled=None)
    height, width = batch.labels.shape[1:]
    found = confident_labels(teacher, threshold, (height, width), batch.ignore_index)
    return batch.replace(labels=torch.where(known, batch.labels, found), labelled=None)


@torch.no_grad()
def confident_labels(
    outputs: Outputs, threshold: float, size: tuple[int, int], ignore_index: int
) -> Tensor:
    """The most likely class where its probability reaches the threshold, else ``ignore_index``.

    Args:
        outputs: of a teacher, logits (B, K, h, w).
        threshold: smallest probability.
        size: (H, W) to which labels are resized by nearest neighbour.
        ignore_index: the label of other pixels.

    Returns:
        Labels (B, H, W) int64.
    """
    logits = outputs.logits
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    highest, labels = logits.softmax(1).max(1)
    return nearest(labels.masked_fill(highest < threshold, ignore_index), *size)
