"""Images without labels in methods that need them: the teacher's confident classes, or none."""

import torch
from torch import Tensor

from segkd.methods.base import Method, nearest
from segkd.structures import Batch, Outputs


def takes_pseudo_labels(method: Method) -> bool:
    """Whether a method that needs labels gets the teacher's; else it leaves images out."""
    return bool(method.needs.teacher) and method.config.pseudo_labels is not None


def batch_for(method: Method, batch: Batch, teacher: Outputs | None) -> Batch:
    """The batch as a method sees it.

    One that needs labels gets the teacher's confident classes as labels of unlabelled images,
    all other pixels of these are void; or these images count as padding.
    """
    if batch.labelled is None or batch.labels is None or not method.needs.labels:
        return batch
    known = batch.labelled[:, None, None]
    if teacher is None or not takes_pseudo_labels(method):
        return batch.replace(not_padding=batch.not_padding & known, labelled=None)
    size, void = batch.labels.shape[1:], batch.ignore_index
    found = confident_labels(teacher, method.config.pseudo_labels, size, void)
    return batch.replace(labels=torch.where(known, batch.labels, found), labelled=None)


@torch.no_grad()
def confident_labels(
    outputs: Outputs, threshold: float, size: tuple[int, int], ignore_index: int
) -> Tensor:
    """(B, H, W) int64: the likeliest class where its probability reaches the threshold, else void.

    Taken at the resolution of the logits and brought to ``size`` by nearest neighbour.
    """
    logits = outputs.logits
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    highest, labels = logits.softmax(1).max(1)
    return nearest(labels.masked_fill(highest < threshold, ignore_index), *size)
