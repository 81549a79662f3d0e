"""Instance relationship graph: nodes, their distances, and their change from layer to layer.

Liu, Cao, Li, Yuan, Hu, Li, Duan: Knowledge Distillation via Instance Relationship Graph. CVPR
2019, doi 10.1109/CVPR.2019.00726 (no arXiv).

    vertex          mean over valid pixels and classes of (z_s − z_t)²
    edge            mean over pairs of nodes (i, j) of (e_s,ij − e_t,ij)²
    transformation  mean over nodes i of (v_s,i − v_t,i)²
    L = 0.1 vertex + 5 edge + 5 transformation

e_ij = ‖y_i − y_j‖² and v_i = ‖x_i − y_i‖², each divided by its largest value; x and y are the
nodes at an earlier and a later layer.
Taps: two layers of each network, by default the last two stages, and the logits. Edges are those
of the later layer, or of both layers of the student compared with the teacher's later one
(``edges: all``, the paper's multi-to-one).
Nodes are class regions by default, images in the paper. Where two layers differ in channels
x − y is not defined: the wider nodes are averaged over neighbouring channels, as public code does
where channels double. (A trained projection could make all v equal, and learn nothing.)
The authors' Caffe code treats the maxima as constants; here, as in the PyTorch ports, the
gradient passes through them.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d

from segkd.methods.base import Context, Conversion, Method, Needs, TapNames, Weight
from segkd.methods.shared.node_sampler import NodeKeys, NodeSampler
from segkd.methods.shared.tapped import bound_pairs
from segkd.ops.nodes import distances, mean_or_zero, paired_nodes, share_of_largest
from segkd.ops.resize import common_size, match_sizes
from segkd.ops.squared_distance import masked_mse
from segkd.structures import Batch, Outputs, Term

_LAYERS = ("stage4", "stage5")
_WEIGHTS = {"vertex": 0.1, "edge": 5.0, "transformation": 5.0}


def irg_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    *,
    edge_weight: float = _WEIGHTS["edge"],
    transformation_weight: float = _WEIGHTS["transformation"],
    edges: Literal["last", "all"] = "last",
    node_limit: int = 4096,
) -> Tensor:
    """Weighted sum of the edge and the transformation loss; vertices are an MSE of logits.

    Args:
        student: the same nodes at an earlier and a later layer, (M, C_1) and (M, C_2).
        teacher: likewise, channels may differ; detached.
        edge_weight: of the edge loss.
        transformation_weight: of the transformation loss.
        edges: layers of the student whose edges are compared with the teacher's later layer.
        node_limit: largest M; the edges are M².

    Returns:
        A scalar, float32 or wider; a differentiable zero without nodes.

    Raises:
        ValueError: not two layers each, shapes do not match, or too many nodes.
    """
    edge, transformation = _terms(student, teacher, edges, node_limit)
    return edge_weight * edge + transformation_weight * transformation


def _terms(
    student: Sequence[Tensor], teacher: Sequence[Tensor], edges: str, node_limit: int
) -> tuple[Tensor, Tensor]:
    shapes = [[tuple(nodes.shape) for nodes in layers] for layers in (student, teacher)]
    if any(len(layers) != 2 or layers[0][0] != layers[1][0] for layers in shapes):
        raise ValueError(
            f"irg_loss got layers of shapes {shapes[0]} and {shapes[1]}; expected the same nodes "
            "at two layers of each side: [(M, C_1), (M, C_2)]"
        )
    early, early_t = paired_nodes(student[0], teacher[0], limit=node_limit)
    late, late_t = paired_nodes(student[1], teacher[1], limit=node_limit)
    target = share_of_largest(distances(late_t).square())
    edge = late.new_zeros(())
    learning = [late] if edges == "last" else [early, late]
    for nodes in learning:
        difference = share_of_largest(distances(nodes).square()) - target
        edge = edge + mean_or_zero(difference.square()).to(edge.dtype) / len(learning)
    moved = share_of_largest(_moves(early, late)) - share_of_largest(_moves(early_t, late_t))
    return edge, mean_or_zero(moved.square())


def _moves(early: Tensor, late: Tensor) -> Tensor:
    """(M,): squared distances of nodes at two layers, at the smaller number of channels."""
    channels = min(early.shape[1], late.shape[1])
    early, late = (adaptive_avg_pool1d(nodes, channels) for nodes in (early, late))
    return (early - late).square().sum(dim=1)


class IRGConfig(NodeKeys):
    """Keys of the method ``irg``."""

    weight: Weight = Field(0.09, description="factor of all terms; see docs/weights.md")
    layers: tuple[str, str] | None = Field(
        None,
        description="taps of the student, the later one last; default: the last two stages",
    )
    teacher_layers: tuple[str, str] | None = Field(
        None, description="those of the teacher; default: like `layers`"
    )
    edges: Literal["last", "all"] = Field(
        "last", description="layers of the student that learn the teacher's last edges"
    )


class IRG(Method[IRGConfig]):
    """Terms ``vertex`` (a mean over valid pixels), ``edge`` and ``transformation``."""

    name = "irg"
    kind = "relation"
    paper = "Liu et al.: Knowledge Distillation via Instance Relationship Graph, CVPR 2019"
    year = 2019
    equation = (
        "vertex: mean_{pixels, classes} (z_s − z_t)²; edge: mean_ij (e_s,ij − e_t,ij)², "
        "e = ‖y_i − y_j‖²/max; transformation: mean_i (v_s,i − v_t,i)², v = ‖x_i − y_i‖²/max"
    )
    cost = "means over the features of two layers, M·M·C for M nodes, a pass over the logits"
    default_weights: Mapping[str, float] = _WEIGHTS
    exempt: ClassVar = {"no_waiting": "the number of nodes depends on the labels"}
    conversions: ClassVar = {
        "Knowledge-Distillation-Zoo": Conversion(1, note="terms 0.1, 5, 5; its edges: no factor"),
    }

    def __init__(self, config: IRGConfig | None = None) -> None:
        super().__init__(config)
        self.layers = self.config.layers or _LAYERS
        self.teacher_layers = self.config.teacher_layers or self.layers
        self.sampler = NodeSampler(self.config)

    def bind_taps(self, student: TapNames, teacher: TapNames | None) -> None:
        chosen = self.config.teacher_layers or ()
        if self.config.layers is None:
            pairs = bound_pairs(_LAYERS, student, teacher, chosen=chosen, least=2)
            (early, early_t), (late, late_t) = list(pairs.items())[-2:]
            self.layers, self.teacher_layers = (early, late), (early_t, late_t)

    @property
    def needs(self) -> Needs:
        taps = (*self.layers, "logits"), (*self.teacher_layers, "logits")
        return Needs(*taps, labels=self.config.needs_labels)

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        mask = context.mask_at(*common_size(student.logits, teacher.logits))
        vertex = masked_mse(*match_sizes(student.logits, teacher.logits.detach()), mask=mask)
        nodes = self.sampler(
            [student.tap(layer) for layer in self.layers],
            [teacher.tap(layer) for layer in self.teacher_layers],
            context,
        )
        edge, transformation = _terms(
            nodes.student, nodes.teacher, self.config.edges, self.config.node_limit
        )
        return {
            "vertex": Term(vertex, mask.sum(dtype=torch.float64)),
            "edge": Term(edge),
            "transformation": Term(transformation),
        }
