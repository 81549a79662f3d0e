"""Cross-image relational distillation: similarities of pixels to all pixels of batch and bank.

Yang, Zhou, An, Jiang, Xu, Zhang: Cross-Image Relational Knowledge Distillation for Semantic
Segmentation. CVPR 2022, arXiv 2204.06986.

    L = mean over anchors a and images j of Σ_n p_t log(p_t / p_s),   p = softmax_n(a · k_jn / T)

All vectors have length 1. Terms (a weight of 0 skips the computation):
`minibatch`: keys are the valid positions of image j, for all pairs of images of the global batch,
including an image with itself; each network has its own keys, so channels may differ.
`pixel_memory`: keys are teacher features of earlier images, from a ring buffer per class.
`region_memory`: the same with means of class regions.
`version: 2` (its public code of 2025) has weights for these as well: `channel`, `channel_memory`:
anchors and keys are channels, as vectors over the cells of a grid, from the batch and a bank;
`channel_distance`: Σ (s − t)² of the same channel; `feature`: mean (W·G(s) − t)². G is graph
reasoning over the student's positions, whose result takes the place of its features in all terms.
All but `minibatch` project the student's features to the teacher's channels. Taps: any, ``head`` by
default. With all positions of 512x1024 crops the `minibatch` term costs five steps of a student, so
larger maps than ``positions`` are means of windows. The public code fills its pixel bank from wrong
positions, samples random entries and what it has just stored, relates the images of one device
(``scope: device``), all positions, masks void in the memory terms only, and fixes channels to one
size of crops. Here it follows the paper; banks start empty.
"""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from segkd.errors import ConfigError
from segkd.methods.base import BuildContext, Context, Conversion, Weight
from segkd.methods.shared.channel_relations import TERMS, ChannelKeys, ChannelRelations
from segkd.methods.shared.feature_scale import FeatureScale, ScaleKeys
from segkd.methods.shared.tapped import TapKeys, TapMethod
from segkd.methods.shared.teacher_bank import BankKeys, TeacherBank
from segkd.modules.adapter import channel_adapter
from segkd.modules.class_queue import pick_valid
from segkd.modules.context_block import ContextBlock
from segkd.modules.node_projector import node_projector
from segkd.ops.gram import limited_maps, pool_nodes
from segkd.ops.masked import position_mask
from segkd.ops.resize import common_size, match_sizes
from segkd.ops.similarity_kl import mean_similarity_kl, unit, unit_channels, unit_nodes
from segkd.ops.squared_distance import masked_mse
from segkd.structures import Batch, Outputs, Term

_V1 = {"minibatch": 1.0, "pixel_memory": 0.1, "region_memory": 0.1}
_V2 = {"channel": 1.0, "channel_memory": 0.1, "channel_distance": 0.2, "feature": 1.0}
_GRID = (16, 32)  # 4x4 windows of 512x1024 crops at stride 8


def cirkd_loss(
    student: Tensor, teacher: Tensor, *, mask: Tensor | None = None, temperature: float = 0.1
) -> Tensor:
    """The mini-batch term: mean over valid anchors and images of KL(teacher ‖ student).

    Args:
        student: features (B, C_s, h, w).
        teacher: features (B, C_t, h', w'); detached.
        mask: (B, h, w) bool at the smaller of both sizes, True where positions are valid; None:
            all. Invalid positions are neither anchors nor keys.
        temperature: T of the softmax over the positions of an image.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no position is valid.

    Raises:
        ValueError: the mask has another shape.
    """
    student, teacher = match_sizes(student, teacher, mask=mask)
    keep = position_mask(student, mask).flatten(1)
    keys = unit_nodes(student), unit_nodes(teacher), keep
    return mean_similarity_kl(*keys, *keys, temperature)[0]


class CIRKDConfig(TapKeys, BankKeys, ChannelKeys, ScaleKeys):
    """Keys of the method ``cirkd``."""

    version: Literal[1, 2] = Field(
        1,
        description="2 adds channels, their bank, and a hint after graph reasoning: weights of "
        "channel 1, channel_memory 0.1, channel_distance 0.2, feature 1",
    )
    weight: Weight = Field(0.22, description="factor of all terms; see docs/weights.md")
    temperature: PositiveFloat = Field(0.1, description="T of the softmax over keys")
    pool: PositiveInt | tuple[PositiveInt, PositiveInt] | None = Field(
        None, description="window whose mean is a node; [gh, gw]: a grid; null: see positions"
    )
    positions: PositiveInt | None = Field(
        2048, description="largest number of an image: larger maps are averaged; null: any"
    )
    scope: Literal["global", "device"] = Field(
        "global", description="keys of `minibatch`, `channel`: of all processes, or of one's own"
    )
    anchors: PositiveInt | None = Field(None, description="random ones per image; null: all")


class CIRKD(TapMethod[CIRKDConfig]):
    """Terms ``minibatch``, ``pixel_memory``, ``region_memory``, ``channel``, means over pairs."""

    name = "cirkd"
    kind = "relation"
    paper = "Yang et al.: Cross-Image Relational Knowledge Distillation, arXiv 2204.06986"
    year = 2022
    published = "Cityscapes, DeepLabV3-R18: 74.21 → 76.38; version 2, test: 73.56 → 75.60 (README)"
    equation = "mean_anchors mean_images Σ_n p_t log(p_t / p_s), p = softmax_n(a · k_jn / T)"
    cost = "products of (B·N)²·C and B·N·5130·C, streamed: no map of similarities is kept"
    default_weights: Mapping[str, float] = _V1 | dict.fromkeys(_V2, 0.0)
    conversions: ClassVar = {
        "CIRKD mini-batch": Conversion(1, note="minibatch"),
        "CIRKD pixel memory": Conversion(0.1, note="pixel_memory"),
        "CIRKD region memory": Conversion(0.1, note="region_memory; 0.01 on VOC"),
        "CIRKD v2 channels": Conversion(1, note="channel; cells of 4x4 positions"),
        "CIRKD v2 channel memory": Conversion(0.1, note="channel_memory"),
        "CIRKD v2 channel MSE": Conversion(1600, {"h": -1, "w": -1}, "channel_distance"),
        "CIRKD v2 FitNet": Conversion(1, note="feature; raw features; 10 on VOC with MobileNet"),
    }

    def __init__(self, config: CIRKDConfig | None = None) -> None:
        super().__init__(config)
        if self.config.version == 2:
            self.default_weights = _V1 | _V2
        weights = {**self.default_weights, **self.config.weights}
        self.active = {term for term in self.default_weights if weights[term] > 0}
        self.kinds = [kind for kind in ("pixel", "region") if f"{kind}_memory" in self.active]
        self.bank: TeacherBank | None = None
        self.channels: ChannelRelations | None = None
        self.reasoning: ContextBlock | None = None
        # The only term in the unit of the features.
        scaled = "feature" in self.active and self.config.scale == "teacher"
        self.feature_scale = FeatureScale(scaled)

    @property
    def needs_labels(self) -> bool:
        return bool(self.kinds)

    @property
    def grid(self) -> tuple[int, int] | None:
        """Cells of which channels are vectors; None: nodes as of ``pool``, as before version 2."""
        new = self.config.version == 2 or self.active & {"channel_memory", "channel_distance"}
        return self.config.channel_grid or (_GRID if new else None)

    def build(self, spec: BuildContext) -> None:
        if not self.active:
            raise ConfigError("cirkd: all of its weights are 0. Raise one or drop the entry")
        config, theirs = self.config, spec.teacher[self.teacher_tap].channels
        mine = spec.student[config.tap].channels
        if self.kinds:
            self.bank = TeacherBank(config, self.kinds, spec.num_classes, theirs)
        if self.kinds or ("channel" in self.active and self.grid is None):
            self.projector = node_projector(mine, theirs)
        if self.active & set(TERMS) and self.grid is not None:
            self.channels = ChannelRelations(
                config,
                self.grid,
                self.active,
                node_projector(mine, theirs, positive=True),
                getattr(torch, config.bank_dtype),
                config.temperature,
            )
        if "feature" in self.active:
            self.reasoning = ContextBlock(mine)
            self.adapter = channel_adapter(mine, theirs, always=True)

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        own, other = self._features(student, teacher, context)
        maps, target, keep = self._nodes(own, other, context)
        targets, weight = unit_nodes(target), keep
        terms: dict[str, Term] = {}
        index: Tensor | None = None
        if self.config.anchors:
            places, weight = pick_valid(keep, self.config.anchors, context.image_generators)
            index = places.unsqueeze(2)

        def pick(nodes: Tensor) -> Tensor:
            return nodes if index is None else torch.take_along_dim(nodes, index, dim=1)

        relation = partial(mean_similarity_kl, temperature=self.config.temperature)
        if "minibatch" in self.active:
            mine = unit_nodes(maps)
            keys = self._keys(context, mine, targets, keep)
            terms["minibatch"] = Term(*relation(pick(mine), pick(targets), weight, *keys))
        if self.bank is not None:
            mine = unit(self.projector(pick(maps.flatten(2).mT)))
            for kind, entries, known in self.bank.sample(context):
                both = entries[None], entries[None], known[None]
                terms[f"{kind}_memory"] = Term(*relation(mine, pick(targets), weight, *both))
        if self.channels is not None:
            terms |= self.channels(own, other, context, partial(self._keys, context))
        elif "channel" in self.active:
            rows = unit_channels(self.projector(maps.flatten(2).mT).mT, target.flatten(2), keep)
            terms["channel"] = Term(*relation(*rows, *self._keys(context, *rows)))
        if self.reasoning is not None:
            mask = context.mask_at(*common_size(own, other))
            pair = match_sizes(self.adapter(own), other, mask=mask)
            terms["feature"] = Term(masked_mse(*pair, mask), mask.sum(dtype=torch.float64))
        return terms

    def _keys(self, context: Context, *own: Tensor) -> tuple[Tensor, ...]:
        """Nodes (B, …) of the images that ``scope`` relates to those of this process."""
        return own if self.config.scope == "device" else context.gather_rows(*own)

    def _features(
        self, student: Outputs, teacher: Outputs, context: Context
    ) -> tuple[Tensor, Tensor]:
        """Both tapped maps, the student's after graph reasoning if there is any."""
        if self.reasoning is None:
            return self.tapped(student, teacher)
        maps, target = self.scaled(student, teacher, context)
        return self.reasoning(maps, context.mask_at(*maps.shape[-2:])), target

    def _nodes(
        self, maps: Tensor, target: Tensor, context: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Maps of both networks at one size, pooled, and (B, N) bool of their valid nodes."""
        mask = context.mask_at(*common_size(maps, target))
        maps, target = match_sizes(maps, target, mask=mask)
        if self.config.pool is None:
            keep, (maps, target) = limited_maps(mask, self.config.positions, maps, target)
            return maps, target, keep.flatten(1)
        try:
            (maps, keep), (target, _) = (
                pool_nodes(x, mask, self.config.pool) for x in (maps, target)
            )
        except ValueError as error:
            raise ConfigError(f"cirkd: {error}") from None
        return maps, target, keep.flatten(1)

    def after_step(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> None:
        if self.bank is not None:
            self.bank.fill(teacher.tap(self.teacher_tap), context)
        if self.channels is not None:
            self.channels.fill(teacher.tap(self.teacher_tap), context)
