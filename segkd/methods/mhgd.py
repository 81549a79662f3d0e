"""MHGD: the student's nodes attend to each other from stage to stage as the teacher's do.

Lee, Song: Graph-based Knowledge Distillation by Multi-head Attention Network. BMVC 2019, arXiv
1907.02226.

    L = Σ_pairs mean over nodes i and heads of Σ_j p_s,ij · log(p_s,ij / p_t,ij)
    p = softmax over j of tanh(G),   G = BN(W_1 v)_i · BN(W_2 u)_j

v, u: the vectors of the nodes at a stage and at the one before, each the first right singular
vector of the node's features. Taps: the last three stages by default, each with the one before.
The attention (W_1, W_2, 8 heads) learns from the teacher alone, in the first ``attention_steps`` of
the run, together with an estimator that rebuilds v of the teacher:

    mean over nodes of 1 − cos(v, FC(concatenated heads of softmax(G) · ReLU(BN(FC(u)))))

in which random heads of each row are dropped. Then it is frozen, with its statistics, for both
networks: if it learned from the student, it would make all nodes equal. Meanwhile the student
learns from what else the run has.
Nodes are images in the paper, with batches of 128. Here they are the patches of a grid, or regions
(``nodes``): an analogue for small batches. 1x1 convolutions on the student's stages where channels
differ are our extension. Public code, which has KL with the student first as above, sums over
nodes and heads, and clips the gradient of each weight to the norm of that of the task loss.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from segkd.errors import ConfigError
from segkd.methods.base import BuildContext, Context, Conversion, Needs, Weight
from segkd.methods.shared.direction_nodes import DirectionSampler
from segkd.methods.shared.node_sampler import NodeKeys
from segkd.methods.shared.tapped import TapListKeys, TapListMethod
from segkd.modules.attention_graph import AttentionGraph
from segkd.ops.mode import eval_mode
from segkd.ops.nodes import mean_or_zero, raised
from segkd.ops.precision import full_precision
from segkd.ops.resize import match_sizes
from segkd.structures import Batch, Outputs, Term

_SHARE = 0.1  # of all steps, in which the attention learns


def mhgd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over heads and nodes of the KL of two attention graphs, the student's first.

    Args:
        student: attention before the softmax, (heads, M, M): node i of a stage to node j of the
            stage before.
        teacher: the same of the teacher, of the same shape; detached.

    Returns:
        A scalar, float32 or wider; a differentiable zero without nodes.

    Raises:
        ValueError: the shapes differ.
    """
    if student.shape != teacher.shape or student.ndim != 3:
        raise ValueError(
            f"mhgd_loss: student has shape {tuple(student.shape)}, teacher {tuple(teacher.shape)}; "
            "expected (heads, M, M) of the same nodes"
        )
    graphs = (raised(graph).tanh().log_softmax(dim=2) for graph in (student, teacher.detach()))
    log_s, log_t = graphs
    return mean_or_zero((log_s.exp() * (log_s - log_t)).sum(dim=2))


class MHGDConfig(TapListKeys, NodeKeys):
    """Keys of the method ``mhgd``."""

    weight: Weight = Field(1.5, description="factor of all terms; see docs/weights.md")
    taps: list[str] | None = Field(
        None, description="stages of the student, each with the one before; default: the last three"
    )
    nodes: Literal["region", "pixel", "grid", "image"] = Field(
        "grid", description="what is related: patches, class regions, pixels, or whole images"
    )
    heads: PositiveInt = Field(8, description="of the attention")
    width: PositiveInt | None = Field(
        None, description="channels of a head; default: the mean of the teacher's two stages"
    )
    attention_steps: NonNegativeInt | None = Field(
        None,
        description="first steps of the run, in which the attention learns from the teacher; "
        "default: a tenth of all; 0: it comes from `init_from`",
    )


class MHGD(TapListMethod[MHGDConfig]):
    """Terms: one per pair of neighbouring stages, each a mean over the nodes of all processes."""

    name = "mhgd"
    kind = "relation"
    paper_weight = 1024.0
    paper = "Lee, Song: Graph-based KD by Multi-head Attention Network, arXiv 1907.02226"
    year = 2019
    equation = (
        "mean_{nodes i, heads} Σ_j p_s log(p_s / p_t)_ij, p = softmax_j tanh(G), "
        "G_ij = BN(W_1 v_i) · BN(W_2 u_j), v, u: directions of nodes at neighbouring stages"
    )
    cost = "power iteration per node, heads·M·M for M nodes; in the first steps also an estimator"
    default_taps = ("stage3", "stage4", "stage5")
    least_taps = 2
    inner_steps = 1
    exempt: ClassVar[Mapping[str, str]] = {
        "upsampled_maps": "patches overlap where a map is no multiple of the grid",
        "swapped_axes": "more columns than rows of patches",
        "more_padding": "patches are shares of the map",
        "no_waiting": "patches with too few valid positions are no nodes",
    }
    conversions: ClassVar = {
        "KD_methods_with_TF": Conversion(8, {"N": 1}, "8 heads, N 128; clipped to the task's"),
    }

    def __init__(self, config: MHGDConfig | None = None) -> None:
        super().__init__(config)
        if len(self.pairs) < 2:
            raise ConfigError(
                f"method 'mhgd' relates neighbouring stages: got taps {self.config.taps}, add one"
            )
        self.sampler = DirectionSampler(self.config)

    @property
    def needs(self) -> Needs:
        taps = tuple(self.pairs), tuple(self.pairs.values())
        return Needs(*taps, labels=self.config.needs_labels)

    def build(self, spec: BuildContext) -> None:
        # Directions do not depend on the gain; layers of a small one would change too fast.
        self.adapters = self.aligned(spec, gain=1.0)
        channels = [spec.teacher[tap].channels for tap in self.pairs.values()]
        heads, width = self.config.heads, self.config.width
        self.graphs = nn.ModuleList(
            AttentionGraph(late, early, heads=heads, width=width or (late + early) // 2)
            for early, late in pairwise(channels)
        )

    def preparation_steps(self, total_steps: int) -> int:
        steps = self.config.attention_steps
        return round(_SHARE * total_steps) if steps is None else steps

    def inner_parameters(self) -> list[nn.Parameter]:
        return list(self.graphs.parameters())

    def inner_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=1e-3)

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        features = [
            adapt(student.tap(tap)) for tap, adapt in zip(self.pairs, self.adapters, strict=True)
        ]
        nodes = self.sampler(features, [teacher.tap(t) for t in self.pairs.values()], context)
        pairs = zip(self._graphs(), pairwise(nodes.student), pairwise(nodes.teacher), strict=True)
        values = []
        with full_precision(nodes.classes.device), eval_mode(self.graphs):
            for graph, (early, late), (early_t, late_t) in pairs:
                values.append(mhgd_loss(graph(late, early), graph(late_t, early_t)))
        return {name: Term(value) for name, value in zip(self._names(), values, strict=True)}

    def inner_loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        targets = [teacher.tap(tap) for tap in self.pairs.values()]
        sizes = [student.tap(tap)[:, :1] for tap in self.pairs]  # at which `loss` will compare
        nodes = self.sampler([], match_sizes(*targets, *sizes)[: len(targets)], context)
        values = []
        with full_precision(nodes.classes.device):
            for graph, (early, late) in zip(self._graphs(), pairwise(nodes.teacher), strict=True):
                values.append(graph.estimate_loss(late, early, context.generator))
        return {name: Term(value) for name, value in zip(self._names(), values, strict=True)}

    def _graphs(self) -> list[AttentionGraph]:
        return [graph for graph in self.graphs if isinstance(graph, AttentionGraph)]

    def _names(self) -> list[str]:
        return [f"{first}_{second}" for first, second in pairwise(self.pairs)]
