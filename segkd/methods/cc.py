"""Correlation congruence: matches the teacher's kernel values between instances.

Peng, Jin, Liu, Zhou, Wu, Liu, Li, Zhang: Correlation Congruence for Knowledge Distillation.
ICCV 2019, arXiv 1904.01802.

    L = mean over pairs (i, j) of (k(s_i, s_j) − k(t_i, t_j))²,   nodes of length 1
    k(x, y) = exp(−2γ) Σ_{p ≤ P} (2γ)^p / p! (x·y)^p              (exp(−γ‖x − y‖²) up to order P)

or k(x, y) = x·y with ``kernel: bilinear``. Taps: one of each network, ``head`` by default;
channels may differ. Nodes are class regions by default, instead of the paper's batches with
equally many images per class; its cross-entropy and KD parts are the task loss and the method
``kd``. Public code has three losses: this one, its square root (torchdistill), and products of
differences of consecutive samples (RepDistiller), which depend on the order of the batch.
"""

import math
from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from segkd.methods.base import Context, Conversion, Weight
from segkd.methods.shared.node_sampler import NodeMethod, TapNodeKeys
from segkd.ops.nodes import mean_or_zero, paired_nodes, unit_rows
from segkd.ops.precision import full_precision
from segkd.structures import Batch, Outputs, Term


def cc_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    kernel: Literal["rbf", "bilinear"] = "rbf",
    gamma: float = 0.4,
    order: int = 2,
    node_limit: int = 4096,
) -> Tensor:
    """Mean over pairs of nodes of the squared difference of their kernel values.

    Args:
        student: nodes (M, C_s).
        teacher: the same nodes (M, C_t); detached.
        kernel: ``rbf``, the Taylor series of a Gaussian, or ``bilinear``, the cosine.
        gamma: of ``rbf``; larger values respond to smaller differences.
        order: of ``rbf``, the highest power of the series.
        node_limit: largest M; the kernel values are M².

    Returns:
        A scalar, float32 or wider; a differentiable zero without nodes.

    Raises:
        ValueError: shapes do not match, or too many nodes.
    """
    student, teacher = paired_nodes(student, teacher, limit=node_limit)
    # The constant of the series cancels out.
    series = [math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) for p in range(order + 1)]
    factors = [0.0, 1.0] if kernel == "bilinear" else [0.0, *series[1:]]
    with full_precision(student.device):
        own, other = (_polynomial(unit_rows(nodes), factors) for nodes in (student, teacher))
    return mean_or_zero((own - other).square())


def _polynomial(nodes: Tensor, factors: list[float]) -> Tensor:
    """(M, M): Σ_p factors[p] · (x·y)^p for all pairs of rows."""
    products = nodes @ nodes.T
    value = products.new_zeros(())
    for factor in reversed(factors):
        value = value * products + factor
    return value


class CCConfig(TapNodeKeys):
    """Keys of the method ``cc``."""

    weight: Weight = Field(4.0, description="factor of all terms; see docs/weights.md")
    kernel: Literal["rbf", "bilinear"] = Field("rbf", description="Taylor series, or cosine")
    gamma: PositiveFloat = Field(0.4, description="of `rbf`; larger: smaller differences")
    order: PositiveInt = Field(2, le=8, description="of `rbf`: highest power of the series")


class CC(NodeMethod[CCConfig]):
    """Term ``cc``, the same value on all processes."""

    name = "cc"
    kind = "relation"
    paper_weight = 100.0
    paper = "Peng et al.: Correlation Congruence for Knowledge Distillation, arXiv 1904.01802"
    year = 2019
    equation = (
        "mean_ij (k(s_i, s_j) − k(t_i, t_j))², k(x, y) = exp(−2γ) Σ_{p≤P} (2γ)^p/p! (x·y)^p, "
        "nodes of length 1"
    )
    cost = "a mean over the features, M·M·C for M nodes"
    conversions: ClassVar = {
        "Knowledge-Distillation-Zoo": Conversion(100, note="gamma 0.4, order 2"),
    }

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        nodes = self.nodes(student, teacher, context)
        value = cc_loss(
            nodes.student[0],
            nodes.teacher[0],
            kernel=self.config.kernel,
            gamma=self.config.gamma,
            order=self.config.order,
            node_limit=self.config.node_limit,
        )
        return {"cc": Term(value)}
