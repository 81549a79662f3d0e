"""Boundary IoU: how well the edges of a segmentation are drawn.

Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021,
arXiv 2103.16562. For each class, with G and P its pixels in the label and in the prediction:

    |(G_d ∩ G) ∩ (P_d ∩ P)| / |(G_d ∩ G) ∪ (P_d ∩ P)|

G_d ∩ G are the pixels of G that are within d of a pixel outside of G, d being 2 % of the image's
diagonal, rounded, at least 1. As in the authors' code distances are those of a square window, and
what lies beyond the image is outside. Counts are summed over images before they are divided, and
no smaller of mask and boundary IoU is taken: that is for instances.

Void pixels are cut out of label and prediction alike before edges are looked for: they are
counted nowhere, what is predicted there does not matter, and a perfect prediction has IoU 1.
(detectron2 erodes the map of class ids itself; the differences that it gets are no classes.)
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from segkd.metrics.confusion import Reducer, confusion

DILATION_RATIO = 0.02


def boundary_width(size: tuple[int, int], ratio: float = DILATION_RATIO) -> int:
    """The distance d in pixels that counts as boundary in an image of ``size`` (H, W)."""
    return max(1, round(ratio * math.hypot(*size)))


def boundary(regions: Tensor, width: int) -> Tensor:
    """Pixels within ``width`` of another region or of the image's border: all regions at once.

    A pixel is none of them if the window of 2·width + 1 around it has one id throughout: no two
    neighbours in it differ. Sums of differences are running sums, so the cost is that of a few
    passes over the image, whatever the width and the number of classes.

    Args:
        regions: (H, W) integer ids; any.

    Returns:
        (H, W) bool.
    """
    regions = regions.long()
    # A frame that differs from all that is in the image.
    frame = F.pad(regions, (1, 1, 1, 1), value=int(regions.min()) - 1)
    across = _any_of_span(frame[:, 1:] != frame[:, :-1], width, width, dim=1)[1:-1, 1:-1]
    down = _any_of_span(frame[1:] != frame[:-1], width, width, dim=0)[1:-1, 1:-1]
    # All rows of the window are uniform, and so is its middle column.
    return down | _any_of_span(across, width, width + 1, dim=0)[:-1]


def boundary_counts(
    prediction: Tensor,
    label: Tensor,
    num_classes: int,
    ignore_index: int,
    ratio: float = DILATION_RATIO,
) -> Tensor:
    """Boundary pixels of one image by class.

    Args:
        prediction: (H, W) class ids; at void pixels anything.
        label: (H, W) class ids and ``ignore_index``.

    Returns:
        (2, K) int64: pixels in both boundaries, and pixels in at least one.

    Raises:
        DataError: if sizes differ, or an id is neither a class nor ``ignore_index``.
    """
    void = label == ignore_index
    if prediction.shape != label.shape or not all(
        _are_classes(ids.masked_fill(void, 0), num_classes) for ids in (label, prediction)
    ):
        confusion(prediction, label, num_classes, ignore_index)  # says what is wrong
    maps = [ids.long().masked_fill(void, num_classes) for ids in (label, prediction)]
    width = boundary_width(tuple(label.shape), ratio)
    drawn = [ids.where(boundary(ids, width), num_classes) for ids in maps]
    both = drawn[0].where(drawn[0] == drawn[1], num_classes)
    shared, labelled, predicted = (
        torch.bincount(ids.flatten(), minlength=num_classes + 1)[:num_classes]
        for ids in (both, *drawn)
    )
    return torch.stack([shared, labelled + predicted - shared])


class BoundaryCounts:
    """Sums boundary counts over images and, once at the end, over processes.

    Attributes:
        counts: (2, K) int64: pixels in both boundaries, and in at least one.
    """

    def __init__(
        self, num_classes: int, ignore_index: int, device: torch.device | str = "cpu"
    ) -> None:
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.counts = torch.zeros(2, num_classes, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Adds one image: (H, W) class ids. Raises DataError as ``boundary_counts`` does."""
        self.counts += boundary_counts(prediction, label, self.num_classes, self.ignore_index)

    def reduce(self, runtime: Reducer) -> None:
        """Adds up the counts of all processes with a single all-reduce."""
        self.counts = runtime.all_reduce(self.counts)


def boundary_iou(counts: Tensor) -> Tensor:
    """(2, K) counts -> (K,) float64; NaN for classes that no boundary pixel has."""
    return counts[0].double() / counts[1]


def mean_boundary_iou(counts: Tensor) -> float:
    """Mean over the classes that are not absent; NaN if all are."""
    return float(boundary_iou(counts).nanmean())


def _are_classes(ids: Tensor, num_classes: int) -> bool:
    lowest, highest = (int(extreme) for extreme in ids.aminmax())
    return lowest >= 0 and highest < num_classes


def _any_of_span(marks: Tensor, before: int, after: int, dim: int) -> Tensor:
    """For each i up to the length whether any of marks[i - before : i + after] is set.

    Marks between neighbours (i: between the items i and i + 1) give an answer for each item.
    """
    length = marks.shape[dim]
    sums = marks.cumsum(dim, dtype=torch.int32)
    sums = torch.cat([torch.zeros_like(sums.narrow(dim, 0, 1)), sums], dim)
    places = torch.arange(length + 1, device=marks.device)
    first, stop = (places - before).clamp(min=0), (places + after).clamp(max=length)
    return sums.index_select(dim, stop) > sums.index_select(dim, first)
