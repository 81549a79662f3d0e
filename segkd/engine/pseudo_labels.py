"""Pseudo labels of unlabelled images: the teacher's confident classes."""

import torch
from torch import Tensor

from segkd.methods.base import Method, nearest
from segkd.ops.known import of_unknown
from segkd.structures import Batch, Outputs


def takes_pseudo_labels(method: Method) -> bool:
    """Whether a method that needs labels gets pseudo labels; else it skips unlabelled images."""
    return bool(method.needs.teacher) and method.config.pseudo_labels is not None


def batch_for(
    method: Method,
    batch: Batch,
    teacher: Outputs | None,
    student: Outputs | None = None,
    *,
    inner: bool = True,
) -> Batch:
    """The batch as a method receives it.

    For a method that needs labels, those of unlabelled images are the teacher's confident classes
    and void elsewhere; without pseudo labels these images count as padding. So do, for a method
    on the teacher's logits, pixels about which it says nothing, and those that belong to a class
    which it cannot know: by their label, or where there is none by the ``student``'s outputs.
    With ``inner`` it is that of ``inner_loss``, in which a method may read labels alone.
    """
    if teacher is not None and "logits" in method.needs.teacher:
        batch = _told(batch, teacher, student)
    reads = method.needs.labels and (inner or not method.needs.inner_labels)
    if batch.labelled is None or batch.labels is None or not reads:
        return batch
    known = batch.labelled[:, None, None]
    threshold = method.config.pseudo_labels
    if teacher is None or threshold is None or not takes_pseudo_labels(method):
        return batch.replace(not_padding=batch.not_padding & known, labelled=None)
    height, width = batch.labels.shape[1:]
    found = confident_labels(teacher, threshold, (height, width), batch.ignore_index)
    return batch.replace(labels=torch.where(known, batch.labels, found), labelled=None)


@torch.no_grad()
def _told(batch: Batch, teacher: Outputs, student: Outputs | None) -> Batch:
    """The batch in which all that a teacher says nothing about counts as padding."""
    inside = batch.not_padding
    size = inside.shape[1], inside.shape[2]
    if teacher.known is not None:
        inside = inside & nearest(teacher.known, *size)
    if teacher.unknown:
        labels = batch.labels
        classes = torch.full_like(batch.not_padding, -1, dtype=torch.int64)
        if student is not None:
            classes = nearest(student.logits.argmax(1), *size)
        if labels is not None:
            classes = torch.where(labels == batch.ignore_index, classes, labels)
        inside = inside & ~of_unknown(classes, teacher.unknown)
    return batch.replace(not_padding=inside)


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
