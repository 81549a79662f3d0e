"""Turns feature maps into nodes: the same regions of student and teacher, as rows (M, C).

Relations between instances of a batch (RKD, SP, CC, IRG, CRD) were designed for classification
with its large batches. A segmentation batch has few images, so an instance is one of

    region   the mean over the pixels of one class in one image (default)
    pixel    single pixels, as evenly from the classes of an image as possible
    grid     the means of equal patches
    image    the mean of an image: the papers' form, for large batches

Invalid positions belong to no node. Nodes are gathered over processes in the order of the global
batch, so a loss on them has the same value on any number of processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor
from typing_extensions import TypeVar

from segkd.errors import ConfigError
from segkd.methods.base import Context, MethodConfig
from segkd.methods.shared.feature_scale import ScaleKeys
from segkd.methods.shared.tapped import TapKeys, TapMethod
from segkd.ops.queued import queued
from segkd.ops.resize import common_size, match_sizes
from segkd.structures import Outputs

NO_CLASS = -1  # class id of nodes with more than one class


class NodeKeys(MethodConfig):
    """Keys of methods on nodes."""

    nodes: Literal["region", "pixel", "grid", "image"] = Field(
        "region", description="instances: class regions, pixels, patches, or whole images"
    )
    min_area: float = Field(
        0.0005, ge=0, lt=1, description="`region`: smallest share of an image that makes a node"
    )
    pixels: PositiveInt = Field(64, description="`pixel`: nodes per image")
    grid: tuple[PositiveInt, PositiveInt] = Field((4, 8), description="`grid`: rows and columns")
    node_limit: PositiveInt = Field(
        1024, description="of more nodes in the global batch, a random part of this size is taken"
    )

    @property
    def needs_labels(self) -> bool:
        """Whether this kind of node is made from labels."""
        return self.nodes in ("region", "pixel")


@dataclass(frozen=True)
class Nodes:
    """Nodes of the global batch, in its order.

    Attributes:
        student: (M, C) per map, with a graph.
        teacher: the same of the teacher, without.
        classes: (M,) int64, ``NO_CLASS`` for `grid` and `image` nodes.
        images: (M,) int64, dataset index of each node's image.
    """

    student: tuple[Tensor, ...]
    teacher: tuple[Tensor, ...]
    classes: Tensor
    images: Tensor


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


class NodeSampler:
    """Samples the nodes of a step.

    Half types are raised to float32 before averaging. Random choices depend only on the
    generators of the context, so they are the same on any number of processes.

    Args:
        keys: kind and number of nodes.
    """

    def __init__(self, keys: NodeKeys) -> None:
        self.keys = keys

    def __call__(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], context: Context
    ) -> Nodes:
        """Nodes at the element-wise smallest size of all maps.

        Args:
            student: maps (B, C, h, w); channels and sizes may differ.
            teacher: the same; detached.
            context: of the step.

        Raises:
            ConfigError: `region` or `pixel` nodes, but the batch has no labels.
        """
        both = [*student, *(values.detach() for values in teacher)]
        maps = match_sizes(*both, mask=context.mask_at(*common_size(*both)))
        with torch.autocast(maps[0].device.type, enabled=False):
            local = self._local(maps, context)
        values = [context.gather(rows) for rows in local.values]
        classes = context.gather(local.classes)
        images = context.gather(queued(context.batch.index, local.images.device)[local.images])
        if len(classes) > self.keys.node_limit:
            order = torch.randperm(len(classes), generator=context.generator)
            part = order[: self.keys.node_limit].sort().values
            part = queued(part, classes.device)
            values, classes, images = [rows[part] for rows in values], classes[part], images[part]
        return Nodes(tuple(values[: len(student)]), tuple(values[len(student) :]), classes, images)

    def _local(self, maps: Sequence[Tensor], context: Context) -> LocalNodes:
        keys, size = self.keys, maps[0].shape[-2:]
        if keys.nodes == "image":
            return image_nodes(maps, context.mask_at(*size))
        if keys.nodes == "grid":
            return grid_nodes(maps, context.mask_at(*size), keys.grid)
        if context.batch.labels is None:
            raise ConfigError(
                f"nodes: '{keys.nodes}' needs labels, and this batch has none. Use nodes: grid or "
                "nodes: image with unlabelled data"
            )
        labels = context.labels_at(*size)
        known = labels != context.batch.ignore_index
        if keys.nodes == "region":
            return region_nodes(maps, labels, known, keys.min_area)
        return pixel_nodes(maps, labels, known, keys.pixels, context.image_generators)


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
    rows = []
    for values in maps:
        total = F.adaptive_avg_pool2d(values.masked_fill(~mask.unsqueeze(1), 0), size)
        means = total / share.masked_fill(share == 0, 1).to(total.dtype)
        rows.append(means.flatten(2).mT)
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


class TapNodeKeys(TapKeys, NodeKeys):
    """Keys of a ``NodeMethod``."""


TapNodeT = TypeVar("TapNodeT", bound=TapNodeKeys, default=TapNodeKeys, covariant=True)


class NodeMethod(TapMethod[TapNodeT]):
    """Compares relations between nodes, taken from one tap of both networks."""

    exempt: ClassVar = {
        "mask_not_padding": "a position without a label belongs to no region",
        "no_waiting": "the number of nodes depends on the labels",
    }

    def __init__(self, config: TapNodeT | None = None) -> None:
        super().__init__(config)
        self.sampler = NodeSampler(self.config)

    @property
    def needs_labels(self) -> bool:
        """Whether the config's kind of node is made from labels."""
        return self.config.needs_labels

    def nodes(self, student: Outputs, teacher: Outputs, context: Context) -> Nodes:
        """The same nodes of both networks, gathered over all processes."""
        if isinstance(self.config, ScaleKeys):
            maps, target = self.scaled(student, teacher, context)
        else:
            maps, target = self.tapped(student, teacher)
        return self.sampler([maps], [target], context)
