"""Nodes whose vector is the principal direction of their features instead of the mean."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from segkd.errors import ConfigError
from segkd.methods.base import Context
from segkd.methods.shared.local_nodes import NO_CLASS, LocalNodes, kept_nodes, present_classes
from segkd.methods.shared.node_sampler import NodeSampler
from segkd.ops.principal import group_directions


class DirectionSampler(NodeSampler):
    """A ``NodeSampler`` of unit vectors: the first right singular vector of each node's features.

    A pixel has one feature, which is scaled to length 1. The direction of a node does not depend
    on how many features it has, nor on their scale.
    """

    def _local(self, maps: Sequence[Tensor], context: Context) -> LocalNodes:
        if self.keys.nodes == "pixel":
            local = super()._local(maps, context)
            return LocalNodes([normalize(v) for v in local.values], local.classes, local.images)
        groups, classes, least = self._groups(maps[0], context)
        sizes = groups.sum(dim=2)
        keep = (sizes > 0) & (sizes >= least)
        return kept_nodes([self._directions(values, groups) for values in maps], keep, classes)

    def _directions(self, maps: Tensor, groups: Tensor) -> Tensor:
        """(B, G, C) of maps (B, C, h, w), 0 at invalid positions, and groups (B, G, N) bool."""
        grid = (1, 1) if self.keys.nodes == "image" else self.keys.grid
        if self.keys.nodes == "region" or maps.shape[2] % grid[0] or maps.shape[3] % grid[1]:
            return group_directions(maps, groups)
        # Cells that share no position are small maps of their own, and cost no product with others.
        shape = (grid[0], maps.shape[2] // grid[0], grid[1], maps.shape[3] // grid[1])
        cells = maps.reshape(*maps.shape[:2], *shape).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        everything = groups.new_ones(len(cells), 1, cells[0, 0].numel())
        return group_directions(cells, everything).view(len(maps), -1, maps.shape[1])

    def _groups(self, maps: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor | float]:
        """Positions of each node (B, G, N) bool, classes (G,), and the least number of positions.

        Raises:
            ConfigError: `region` nodes, but the batch has no labels.
        """
        keys, (height, width) = self.keys, maps.shape[-2:]
        mask = context.mask_at(height, width).flatten(1).unsqueeze(1)
        if keys.nodes == "region":
            if context.batch.labels is None:
                raise ConfigError(
                    "nodes: 'region' needs labels, and this batch has none. Use nodes: grid or "
                    "nodes: image with unlabelled data"
                )
            labels = context.labels_at(height, width).flatten(1).unsqueeze(1)
            known = labels != context.batch.ignore_index
            classes = present_classes(labels, known)
            return (labels == classes[:, None]) & known, classes, keys.min_area * height * width
        grid = (1, 1) if keys.nodes == "image" else keys.grid
        cells = _cells(height, grid[0], maps), _cells(width, grid[1], maps)
        inside = (cells[0][:, None, :, None] & cells[1][None, :, None, :]).flatten(2).flatten(0, 1)
        classes = inside.new_full((len(inside),), NO_CLASS, dtype=torch.long)
        least = 0.0 if keys.nodes == "image" else inside.sum(dim=1) / 2  # half of it is valid
        return inside & mask, classes, least


def _cells(length: int, number: int, like: Tensor) -> Tensor:
    """(number, length) bool: the parts of ``adaptive_avg_pool2d`` along an axis."""
    number = min(number, length)
    place = torch.arange(length, device=like.device)
    cell = torch.arange(number, device=like.device)[:, None]
    first = cell * length // number
    return (place >= first) & (place < -(-(cell + 1) * length // number))
