"""Nodes of the images of one process: means of regions, patches and images, and single pixels.

See ``node_sampler``, which chooses among them and gathers them over processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from segkd.ops.queued import queued
from segkd.ops.resize import reduce_valid

NO_CLASS = -1  # class id of nodes with more than one class


@dataclass(frozen=True)
class LocalNodes:
    """Nodes of the images of this process.

    Attributes:
        values: (M, C) per map.
        classes: (M,) int64.
        images: (M,) int64, position in the batch of each node's image.
    """

    values: list[Tensor]
    classes: Tensor
    images: Tensor


def image_nodes(maps: Sequence[Tensor], mask: Tensor) -> LocalNodes:
    """The mean over the valid positions of each image that has any.

    Args:
        maps: (B, C, h, w) each, of one size.
        mask: (B, h, w) bool, True where positions are valid.
    """
    return _means(
        maps, mask.flatten(1).unsqueeze(1), mask.new_full((1,), NO_CLASS, dtype=torch.long)
    )


def region_nodes(
    maps: Sequence[Tensor], labels: Tensor, known: Tensor, min_area: float = 0.0
) -> LocalNodes:
    """The mean over the pixels of each class in each image.

    Args:
        maps: (B, C, h, w) each, of one size.
        labels: (B, h, w) class ids.
        known: (B, h, w) bool, False at void labels.
        min_area: share of h·w that a class must cover to be a node; a share, because a number of
            pixels would mean a different area at each resolution.
    """
    classes = present_classes(labels, known)
    groups = (labels.flatten(1).unsqueeze(1) == classes[:, None]) & known.flatten(1).unsqueeze(1)
    return _means(maps, groups, classes, min_area)


def present_classes(labels: Tensor, known: Tensor) -> Tensor:
    """The ids (G,) that occur in labels, any shape, where ``known`` is True; in ascending order.

    Reads the device once: for the number of classes.
    """
    last = torch.iinfo(labels.dtype).max
    ids = labels.masked_fill(~known, last).flatten()
    return torch.unique(torch.cat([ids, ids.new_full((1,), last)]))[:-1]


def kept_nodes(
    values: Sequence[Tensor], keep: Tensor, classes: Tensor | int = NO_CLASS
) -> LocalNodes:
    """The nodes of a table in which some are missing. Reads the device once: for their number.

    Args:
        values: (B, G, C) per map.
        keep: (B, G) bool.
        classes: (B, G) or (G,) int64, or one id for all.
    """
    number = keep.shape[1]
    place = keep.flatten().nonzero()[:, 0]
    rows = [each.flatten(0, 1).index_select(0, place) for each in values]
    if isinstance(classes, int):
        ids = torch.full_like(place, classes)
    else:
        ids = classes[place % number] if classes.ndim == 1 else classes.flatten()[place]
    return LocalNodes(rows, ids, place // number)


def grid_nodes(maps: Sequence[Tensor], mask: Tensor, grid: tuple[int, int]) -> LocalNodes:
    """The means over the valid positions of patches of which at least half is valid.

    Args:
        maps: (B, C, h, w) each, of one size.
        mask: (B, h, w) bool.
        grid: rows and columns of patches; at most h and w are used.
    """
    size = min(grid[0], mask.shape[-2]), min(grid[1], mask.shape[-1])
    share = F.adaptive_avg_pool2d(mask.unsqueeze(1).to(maps[0].dtype), size)
    keep = share.flatten(1) >= 0.5
    rows = [reduce_valid(values, mask, size).flatten(2).mT for values in maps]
    return kept_nodes(rows, keep)


def pixel_nodes(
    maps: Sequence[Tensor],
    labels: Tensor,
    known: Tensor,
    pixels: int,
    generators: Sequence[torch.Generator],
) -> LocalNodes:
    """Random pixels of each image, as evenly from its classes as their numbers allow.

    Classes take turns in giving one pixel each until ``pixels`` are found or all are taken.

    Args:
        maps: (B, C, h, w) each, of one size.
        labels: (B, h, w) class ids.
        known: (B, h, w) bool, False at void labels.
        pixels: nodes per image.
        generators: CPU generators, one per image.
    """
    labels, known = labels.flatten(1), known.flatten(1)
    length = labels.shape[1]
    draws = [torch.rand(length, generator=each, dtype=torch.float64) for each in generators]
    keys = queued(torch.stack(draws), labels.device)
    # Sorted by class, in random order within each, a pixel's distance from the first of its
    # class is the turn in which it is given.
    shuffled = keys.argsort(dim=1)
    unknown = labels.new_full((), torch.iinfo(labels.dtype).max)
    order = torch.where(known, labels, unknown).gather(1, shuffled).sort(dim=1, stable=True)
    position = torch.arange(length, device=labels.device)
    sorted_turn = position - torch.searchsorted(order.values, order.values)
    turn = torch.empty_like(labels).scatter_(1, shuffled.gather(1, order.indices), sorted_turn)
    score = (turn + keys).masked_fill(~known, torch.inf)
    chosen = score.topk(min(pixels, length), dim=1, largest=False).indices.sort(dim=1).values
    keep = known.gather(1, chosen)
    rows = []
    for values in maps:
        index = chosen.unsqueeze(1).expand(-1, values.shape[1], -1)
        rows.append(values.flatten(2).gather(2, index).mT)
    return kept_nodes(rows, keep, labels.gather(1, chosen))


def _means(
    maps: Sequence[Tensor], groups: Tensor, classes: Tensor, min_area: float = 0.0
) -> LocalNodes:
    """Means of maps over groups (B, G, N) bool; groups that are too small are skipped."""
    sizes = groups.sum(dim=2)
    keep = (sizes > 0) & (sizes >= min_area * groups.shape[2])
    rows = []
    for values in maps:
        total = groups.to(values.dtype) @ values.flatten(2).mT
        rows.append(total / sizes.clamp(min=1).unsqueeze(2).to(values.dtype))
    return kept_nodes(rows, keep, classes)
