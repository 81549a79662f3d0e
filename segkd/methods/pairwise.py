"""Pair-wise distillation: matches the similarities of all pairs of positions of an image.

Liu, Chen, Liu, Qin, Luo, Wang: Structured Knowledge Distillation for Semantic Segmentation.
CVPR 2019, arXiv 1903.04197, section 3.2.

    L = 1 / Σ_b n_b² · Σ_b Σ_ij (a^s_ij − a^t_ij)²,   a_ij = cos(f_i, f_j)

for images b, their n_b valid nodes, and pairs (i, j) of nodes of one image.

Taps: any, ``head`` by default, the last feature before the classifier; channels may differ.
Every position is a node: the sum is computed from matrices of channels by channels, so that no
pooling is needed to save memory. Public code max-pools first, in two ways, which are modes here.
SKD's window is half of the map, 2x2 or 3x3 nodes in all, and its gradient treats the norms as
constants; CIRKD's window is 2x2 positions. The paper describes average pooling.
"""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from segkd.errors import ConfigError
from segkd.methods.base import Context, Conversion, Weight
from segkd.methods.shared.tapped import TapKeys, TapMethod
from segkd.ops.gram import affinity_distance, pool_nodes
from segkd.ops.masked import position_mask
from segkd.ops.resize import common_size, match_sizes
from segkd.structures import Batch, Outputs, Term

Pool = int | float | tuple[int, int] | None
MODES: dict[str, dict[str, Any]] = {
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
        teacher: features (B, C_t, h', w'); detached.
        mask: (B, h, w) bool at the smaller of both sizes, True where positions are valid; None:
            all.
        pool: None: every position is a node. An int is the side of pooled windows, a float below 1
            their share of each side of the map, ``(gh, gw)`` the number of nodes. A node is valid
            if any of its positions is.
        pool_type: mean or maximum over the valid positions of a node.
        detach_norm: the gradient treats the student's norms as constants, as SKD's code does.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no position is valid.

    Raises:
        ConfigError: ``pool`` is larger than the map.
        ValueError: the mask has another size.
    """
    value, _ = _mean_over_pairs(student, teacher, mask, pool, pool_type, detach_norm)
    return value


def _mean_over_pairs(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    pool: Pool,
    kind: Literal["avg", "max"],
    detach_norm: bool,
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


class PairwiseConfig(TapKeys):
    """Keys of the method ``pairwise``."""

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
        if pool is None:
            return pool
        smallest = min(pool) if isinstance(pool, tuple) else pool
        if smallest <= 0 or (isinstance(pool, float) and pool >= 1):
            raise ValueError(
                f"got {pool}, expected a number of positions, a share between 0 and 1, or "
                "[rows, columns] of nodes"
            )
        return pool


class Pairwise(TapMethod[PairwiseConfig]):
    """Term ``pairwise``, a mean over pairs of nodes."""

    name = "pairwise"
    kind = "relation"
    paper_weight = 10.0
    paper = "Liu et al.: Structured Knowledge Distillation, arXiv 1903.04197 (pair-wise term)"
    year = 2019
    published = "Cityscapes, PSPNet-R18: 70.51 → 71.78, with kd (SKD's README)"
    equation = "mean over images and pairs of their nodes (a^s_ij − a^t_ij)², a_ij = cos(f_i, f_j)"
    cost = "products of N·C² instead of N²·C; about C² numbers per image are kept for backward"
    conversions: ClassVar = {
        "SKD script": Conversion(0.5, note="mode: skd; 1 without its script"),
        "CIRKD": Conversion(10, note="mode: cirkd"),
    }

    def published_weight(self) -> float:
        weight: float = MODES[self.config.mode].get("weight", self.paper_weight)
        return weight

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        maps, target = self.tapped(student, teacher)
        mask, config = context.mask_at(*common_size(maps, target)), self.config
        options = config.pool, config.pool_type, config.detach_norm
        return {"pairwise": Term(*_mean_over_pairs(maps, target, mask, *options))}
