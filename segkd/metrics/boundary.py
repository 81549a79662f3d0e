"""Boundary IoU: how well a segmentation follows the edges of the label.

Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021,
arXiv 2103.16562. For each class, with pixels G in the label and P in the prediction:

    |(G_d ∩ G) ∩ (P_d ∩ P)| / |(G_d ∩ G) ∪ (P_d ∩ P)|

G_d ∩ G are the pixels of G within d of a pixel outside G, where d is 2 % of the image diagonal,
rounded, at least 1. As in the authors' code, distances are measured in a square window, and pixels
beyond the image are outside. Counts are summed over images before the division. The minimum of mask
and boundary IoU, which the authors use for instances, is not taken.

Void pixels are removed from label and prediction before edges are determined: they are not
counted, predictions there are ignored, and a perfect prediction has IoU 1. (detectron2 erodes the
map of class ids, which yields values that are not class ids.)
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from segkd.metrics.confusion import Reducer, confusion, within

DILATION_RATIO = 0.02


def boundary_width(size: tuple[int, int], ratio: float = DILATION_RATIO) -> int:
    """The boundary width d in pixels for an image of ``size`` (H, W)."""
    return max(1, round(ratio * math.hypot(*size)))


def boundary(regions: Tensor, width: int) -> Tensor:
    """Pixels within ``width`` of another region or of the image border, for all regions at once.

    A pixel is not a boundary pixel if the window of 2·width + 1 around it has a single id, that is,
    if no two neighbours in it differ. Differences are counted with running sums, so the cost does
    not depend on the width or on the number of classes.

    Args:
        regions: (H, W) integer ids, arbitrary.
        width: in pixels.

    Returns:
        (H, W) bool.
    """
    regions = regions.long()
    # A border that differs from all ids of the image.
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
        prediction: (H, W) class ids; arbitrary at void pixels.
        label: (H, W) class ids and ``ignore_index``.
        num_classes: K.
        ignore_index: the label of void pixels.
        ratio: boundary width over the image diagonal.

    Returns:
        (2, K) int64: pixels in both boundaries, and pixels in at least one.

    Raises:
        DataError: sizes differ, or an id is neither a class nor ``ignore_index``.
    """
    void = label.long() == ignore_index  # to torch, the byte 0 equals 256
    if prediction.shape != label.shape or not all(
        within(ids.masked_fill(void, 0), num_classes) for ids in (label, prediction)
    ):
        confusion(prediction, label, num_classes, ignore_index)  # raises the error
    maps = [ids.long().masked_fill(void, num_classes) for ids in (label, prediction)]
    height, width = label.shape
    distance = boundary_width((height, width), ratio)
    drawn = [ids.where(boundary(ids, distance), num_classes) for ids in maps]
    both = drawn[0].where(drawn[0] == drawn[1], num_classes)
    shared, labelled, predicted = (
        torch.bincount(ids.flatten(), minlength=num_classes + 1)[:num_classes]
        for ids in (both, *drawn)
    )
    return torch.stack([shared, labelled + predicted - shared])


class BoundaryCounts:
    """Sums boundary counts over images and finally over processes.

    Args:
        num_classes: K.
        ignore_index: the label of void pixels.
        device: of the counts.

    Attributes:
        counts: (2, K) int64: pixels in both boundaries, and in at least one.
    """

    def __init__(
        self, num_classes: int, ignore_index: int, device: torch.device | str = "cpu"
    ) -> None:
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.counts = torch.zeros(2, num_classes, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Adds one image: (H, W) class ids each. Raises DataError as ``boundary_counts`` does."""
        self.counts += boundary_counts(prediction, label, self.num_classes, self.ignore_index)

    def reduce(self, runtime: Reducer) -> None:
        """Sums the counts over all processes with a single all-reduce."""
        self.counts = runtime.all_reduce(self.counts)


def boundary_iou(counts: Tensor) -> Tensor:
    """(2, K) counts -> (K,) float64; NaN for classes without boundary pixels."""
    return counts[0].double() / counts[1]


def mean_boundary_iou(counts: Tensor) -> float:
    """Mean boundary IoU over the classes that occur, from (2, K) counts; NaN if none does."""
    return float(boundary_iou(counts).nanmean())


def _any_of_span(marks: Tensor, before: int, after: int, dim: int) -> Tensor:
    """Whether any of marks[i - before : i + after] is set, for i in 0 … length along ``dim``."""
    length = marks.shape[dim]
    sums = marks.cumsum(dim, dtype=torch.int32)
    sums = torch.cat([torch.zeros_like(sums.narrow(dim, 0, 1)), sums], dim)
    places = torch.arange(length + 1, device=marks.device)
    first, stop = (places - before).clamp(min=0), (places + after).clamp(max=length)
    return sums.index_select(dim, stop) > sums.index_select(dim, first)
