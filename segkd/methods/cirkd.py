"""Cross-image relational distillation: similarities of pixels to all pixels of batch and bank.

Yang, Zhou, An, Jiang, Xu, Zhang: Cross-Image Relational Knowledge Distillation for Semantic
Segmentation. CVPR 2022, arXiv 2204.06986.

    L = mean over anchors a and images j of Σ_n p_t log(p_t / p_s),   p = softmax_n(a · k_jn / T)

All vectors have length 1. Terms (a weight of 0 skips the computation):
`minibatch`: keys are the valid positions of image j, for all pairs of images of the global batch,
including an image with itself; each network has its own keys, so channels may differ.
`pixel_memory`: keys are teacher features of earlier images, from a ring buffer per class.
`region_memory`: the same with means of class regions. `channel`, of the second version, weight 0:
anchors and keys are channels, as vectors over nodes. These three project the student's features to
the teacher's channels. Taps: any, ``head`` by default. The public code fills its pixel bank from
wrong positions, samples random entries and what it has just stored, relates the images of one
device only, and masks void in the memory terms only. Here it follows the paper; banks start empty.
"""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from segkd.errors import ConfigError
from segkd.methods.base import BuildContext, Context, Conversion, Weight
from segkd.methods.shared.tapped import TapKeys, TapMethod
from segkd.methods.shared.teacher_bank import BankKeys, TeacherBank
from segkd.modules.class_queue import pick_valid
from segkd.ops.gram import pool_nodes
from segkd.ops.resize import common_size, match_sizes
from segkd.ops.similarity_kl import mean_similarity_kl, unit, unit_channels, unit_nodes
from segkd.structures import Batch, Outputs, Term


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
    """
    student, teacher = match_sizes(student, teacher, mask=mask)
    if mask is None:
        mask = torch.ones_like(student[:, 0], dtype=torch.bool)
    keys = unit_nodes(student), unit_nodes(teacher), mask.flatten(1)
    return mean_similarity_kl(*keys, *keys, temperature)[0]


class CIRKDConfig(TapKeys, BankKeys):
    """Keys of the method ``cirkd``."""

    weight: Weight = Field(0.22, description="factor of all terms; see docs/weights.md")
    temperature: PositiveFloat = Field(0.1, description="T of the softmax over keys")
    pool: PositiveInt | tuple[PositiveInt, PositiveInt] | None = Field(
        None, description="window whose mean is a node; [gh, gw]: a grid; null: no pooling"
    )
    anchors: PositiveInt | None = Field(None, description="random ones per image; null: all")


class CIRKD(TapMethod[CIRKDConfig]):
    """Terms ``minibatch``, ``pixel_memory``, ``region_memory``, ``channel``, means over pairs."""

    name = "cirkd"
    kind = "relation"
    paper = "Yang et al.: Cross-Image Relational Knowledge Distillation, arXiv 2204.06986"
    year = 2022
    published = "Cityscapes, DeepLabV3-R18: 74.21 → 76.38 (its README)"
    equation = "mean_anchors mean_images Σ_n p_t log(p_t / p_s), p = softmax_n(a · k_jn / T)"
    cost = "products of (B·N)²·C and B·N·5130·C, streamed: no map of similarities is kept"
    default_weights: Mapping[str, float] = {
        "minibatch": 1.0,
        "pixel_memory": 0.1,
        "region_memory": 0.1,
        "channel": 0.0,
    }
    conversions: ClassVar = {
        "CIRKD mini-batch": Conversion(1, note="minibatch"),
        "CIRKD pixel memory": Conversion(0.1, note="pixel_memory"),
        "CIRKD region memory": Conversion(0.1, note="region_memory; 0.01 on VOC"),
        "CIRKD v2 channels": Conversion(1, note="channel; pool 4"),
    }

    def __init__(self, config: CIRKDConfig | None = None) -> None:
        super().__init__(config)
        weights = {**self.default_weights, **self.config.weights}
        self.active = {term for term in self.default_weights if weights[term] > 0}
        self.kinds = [term.split("_")[0] for term in self.active if term.endswith("_memory")]
        self.bank: TeacherBank | None = None

    @property
    def needs_labels(self) -> bool:
        return bool(self.kinds)

    def build(self, spec: BuildContext) -> None:
        if not self.active:
            raise ConfigError("cirkd: all of its weights are 0. Raise one or drop the entry")
        channels = spec.teacher[self.teacher_tap].channels
        if self.kinds:
            self.bank = TeacherBank(self.config, self.kinds, spec.num_classes, channels)
        if self.active != {"minibatch"}:
            self.projector = node_projector(spec.student[self.config.tap].channels, channels)

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        maps, target, keep = self._nodes(student, teacher, context)
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
            own = unit_nodes(maps)
            keys = [context.gather(nodes) for nodes in (own, targets, keep)]
            terms["minibatch"] = Term(*relation(pick(own), pick(targets), weight, *keys))
        if self.bank is not None:
            own = unit(self.projector(pick(maps.flatten(2).mT)))
            for kind, entries, known in self.bank.sample(context):
                both = entries[None], entries[None], known[None]
                terms[f"{kind}_memory"] = Term(*relation(own, pick(targets), weight, *both))
        if "channel" in self.active:
            rows = unit_channels(self.projector(maps.flatten(2).mT).mT, target.flatten(2), keep)
            terms["channel"] = Term(*relation(*rows, *(context.gather(nodes) for nodes in rows)))
        return terms

    def _nodes(
        self, student: Outputs, teacher: Outputs, context: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Maps of both networks at one size, pooled, and (B, N) bool of their valid nodes."""
        maps, target = self.tapped(student, teacher)
        mask = context.mask_at(*common_size(maps, target))
        try:
            (maps, keep), (target, _) = (
                pool_nodes(x, mask, self.config.pool) for x in match_sizes(maps, target, mask=mask)
            )
        except ValueError as error:
            raise ConfigError(f"cirkd: {error}") from None
        return maps, target, keep.flatten(1)

    def after_step(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> None:
        if self.bank is not None:
            self.bank.fill(teacher.tap(self.teacher_tap), context)


def node_projector(in_channels: int, out_channels: int) -> nn.Module:
    """Two 1x1 convolutions with a normalisation and a ReLU in between, on nodes (…, C).

    The normalisation is over the channels of a position (a GroupNorm of one group per position):
    it needs no statistics per process, and is unaffected by padding.

    Args:
        in_channels: of the student.
        out_channels: of the teacher.

    Returns:
        A module (…, in_channels) -> (…, out_channels).
    """
    first = nn.Linear(in_channels, out_channels, bias=False)
    last = nn.Linear(out_channels, out_channels, bias=False)
    for layer in (first, last):
        nn.init.kaiming_normal_(layer.weight)
    norm = nn.LayerNorm(out_channels, eps=1e-8)
    return nn.Sequential(first, norm, nn.ReLU(inplace=True), last)
