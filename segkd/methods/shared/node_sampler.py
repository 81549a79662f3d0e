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
from pydantic import Field, PositiveInt
from torch import Tensor
from typing_extensions import TypeVar

from segkd.errors import ConfigError
from segkd.methods.base import Context, MethodConfig
from segkd.methods.shared.feature_scale import ScaleKeys
from segkd.methods.shared.local_nodes import (
    LocalNodes,
    grid_nodes,
    image_nodes,
    pixel_nodes,
    region_nodes,
)
from segkd.methods.shared.tapped import TapKeys, TapMethod
from segkd.ops.queued import queued
from segkd.ops.resize import common_size, match_sizes
from segkd.structures import Outputs


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
        own_images = queued(context.batch.index, local.images.device)[local.images]
        *values, classes, images = context.gather_rows(*local.values, local.classes, own_images)
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
