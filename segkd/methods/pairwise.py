"""Pair-wise distillation: which places of an image resemble each other, as the teacher sees it.

Liu, Chen, Liu, Qin, Luo, Wang: Structured Knowledge Distillation for Semantic Segmentation.
CVPR 2019, arXiv 1903.04197, section 3.2.

    L = 1 / Σ_b n_b² · Σ_b Σ_ij (a^s_ij − a^t_ij)²,   a_ij = cos(f_i, f_j)

for images b, their n_b valid nodes, and pairs (i, j) of nodes of one image.

Taps: any, ``head`` by default, the last feature before the classifier; channels may differ.
Every position is a node: the sum is taken from matrices of channels by channels, so that nothing
has to be pooled for memory's sake. Public codes pool by a maximum first, in two ways, both named
modes here. SKD's window is half of the map, 2x2 or 3x3 nodes in all, and its gradient takes the
norms for constants; CIRKD's window is 2x2 positions. The paper writes of average pooling.
"""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from segkd.errors import ConfigError
from segkd.methods.base import Context, Conversion, MethodConfig, Weight
from segkd.methods.shared.tapped import TapKeys, TapMethod
from segkd.ops.gram import affinity_distance, pool_nodes
from segkd.ops.masked import position_mask
from segkd.ops.resize import common_size, match_sizes
from segkd.structures import Batch, Outputs, Term

Pool = int | float | tuple[int, int] | None
MODES = {
    "full": {},
    "skd": {"weight": 0.5, "pool": 0.5, "pool_type": "max", "detach_norm": True},
    "cirkd": {"pool": 2, "pool_type": "max"},
}


def pairwise_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    pool: Pool = None,
    pool_type: Literal["avg", "max"] = "avg",
    detach_norm: bool = False,
) -> Tensor:
    """Mean over pairs of valid nodes of the squared difference of their cosines.

    Args:
        student: features (B, C_s, h, w).
        teacher: features (B, C_t, h', w'); without gradient.
        mask: (B, h, w) bool at the smaller of both sizes, True where positions are valid; None:
            all.
        pool: None takes every position for a node. An int is the side of pooled windows, a float
            below 1 their share of each side of the map, ``(gh, gw)`` the number of nodes. A node
            is valid if any of its positions is.
        pool_type: mean or maximum over the valid positions of a node.
        detach_norm: the gradient takes the student's norms for constants, as SKD's code does.

    Returns:
        A scalar, float32 or wider; 0 with a graph if no position is valid.

    Raises:
        ConfigError: ``pool`` is larger than the map.
        ValueError: the mask has another size.
    """
    value, _ = _mean_over_pairs(student, teacher, mask, pool, pool_type, detach_norm)
    return value


def _mean_over_pairs(
    student: Tensor, teacher: Tensor, mask: Tensor | None, pool: Pool, kind: str, detach_norm: bool
) -> tuple[Tensor, Tensor]:
    """The loss and its number of pairs, float64."""
    teacher = teacher.detach()
    if student.shape[-2:] != teacher.shape[-2:] or mask is not None:
        student, teacher = match_sizes(student, teacher, mask=mask)
    mask = position_mask(student, mask)
    try:
        (student, keep), (teacher, _) = (
            pool_nodes(maps, mask, pool, kind) for maps in (student, teacher)
        )
    except ValueError as error:
        raise ConfigError(f"pairwise: {error}") from None
    keep = keep.flatten(1)
    pairs = keep.sum(dim=1, dtype=torch.float64).square().sum()
    total = affinity_distance(
        student.flatten(2), teacher.flatten(2), keep=keep, detach_norm=detach_norm
    )
    return total / pairs.clamp(min=1).to(total.dtype), pairs


class Pairwise(TapMethod):
    name = "pairwise"
    kind = "relation"
    paper_weight = 10.0
    paper = "Liu et al.: Structured Knowledge Distillation, arXiv 1903.04197 (pair-wise term)"
    year = 2019
    published = "Cityscapes, PSPNet-R18: 70.51 → 71.78, beside kd (SKD's README)"
    equation = "mean over images and pairs of their nodes (a^s_ij − a^t_ij)², a_ij = cos(f_i, f_j)"
    cost = "products of N·C² instead of N²·C; about C² numbers per image are kept beside both maps"
    conversions: ClassVar = {
        "SKD script": Conversion(0.5, note="mode: skd; 1 without its script"),
        "CIRKD": Conversion(10, note="mode: cirkd"),
    }

    class Config(TapKeys, MethodConfig):
        weight: Weight = Field(4.0, description="see docs/weights.md; 0.5 in mode skd")
        mode: Literal["full", "skd", "cirkd"] = Field(
            "full", description="defaults of the other keys: all nodes, or one of the public codes"
        )
        pool: Pool = Field(
            None, description="window: positions, or a share of the map below 1; [gh, gw]: a grid"
        )
        pool_type: Literal["avg", "max"] = Field("avg", description="mean or maximum of a node")
        detach_norm: bool = Field(False, description="no gradient through the norms")

        @model_validator(mode="before")
        @classmethod
        def _defaults_of_mode(cls, keys: Any) -> Any:
            mode = keys.get("mode") if isinstance(keys, dict) else None
            return {**MODES[mode], **keys} if isinstance(mode, str) and mode in MODES else keys

        @field_validator("pool")
        @classmethod
        def _pool_is_positive(cls, pool: Pool) -> Pool:
            sizes = pool if isinstance(pool, tuple) else (pool,)
            if pool is not None and (min(sizes) <= 0 or (isinstance(pool, float) and pool >= 1)):
                raise ValueError(
                    f"got {pool}, expected a number of positions, a share between 0 and 1, or "
                    "[rows, columns] of nodes"
                )
            return pool

    def published_weight(self) -> float:
        return MODES.get(self.config.mode, {}).get("weight", self.paper_weight)

    def loss(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, context: Context
    ) -> dict[str, Term]:
        maps, target = self.tapped(student, teacher)
        mask, config = context.mask_at(*common_size(maps, target)), self.config
        options = config.pool, config.pool_type, config.detach_norm
        return {"pairwise": Term(*_mean_over_pairs(maps, target, mask, *options))}
