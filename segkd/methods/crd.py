"""Contrastive distillation: matches each node to the teacher's among negatives of other classes.

Tian, Krishnan, Isola: Contrastive Representation Distillation. ICLR 2020, arXiv 1910.10699.

    L = mean over nodes of −log h(s, t) / (h(s, t) + m/n) − Σ_k log (m/n) / (h(s, t_k) + m/n)
        and the same with student and teacher exchanged;   h(x, y) = exp(x·y / τ) / Z

s and t are embeddings of length 1 by a trained linear layer per network, t_k and s_k the m
negatives out of n stored ones, Z is n times the mean of exp(x·y/τ), measured once at the first
step. So n cancels out, and h / (h + m/n) is the logistic function of x·y/τ − log(m · mean), in
which no exponential overflows.
Taps: one of each network, ``head`` by default. In the paper a node is an image, and its negatives
are images of other classes from a memory of the dataset. A scene has many classes: here a node is
a class region, its negatives are the latest regions of all other classes, from a queue per class.
Nodes without a class (``grid``, ``image``) have negatives from other images. The public code also
takes the positive from its memory; here it is the node itself, and both embeddings are trained.
"""

import math
from typing import ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, autocast, nn
from torch.nn.functional import softplus

from segkd.methods.base import BuildContext, Context, Conversion, Weight
from segkd.methods.shared.feature_scale import ScaleKeys
from segkd.methods.shared.node_sampler import NodeMethod, TapNodeKeys
from segkd.modules.class_queue import NodeQueue
from segkd.ops.nodes import raised, unit_rows
from segkd.structures import Batch, Outputs, Term


def crd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    negatives: tuple[Tensor, Tensor],
    keep: Tensor | None = None,
    temperature: float = 0.07,
    log_mean: Tensor | None = None,
) -> Tensor:
    """Mean over nodes of the contrastive loss with student and with teacher anchors.

    All embeddings are scaled to length 1. Nodes without negatives are skipped.

    Args:
        student: embeddings (M, D).
        teacher: (M, D), the same nodes; the gradient reaches its embedding layer.
        negatives: stored embeddings of student and teacher, (Q, D) each.
        keep: (M, Q) bool, which of them are negatives of which node; None: all.
        temperature: τ.
        log_mean: (2,) log of the mean of exp(x·y/τ) of student nodes with teacher negatives, and
            of teacher nodes with student negatives; None: of these.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no node has a negative.

    Raises:
        ValueError: shapes do not match.
    """
    student, teacher, *stored = (unit_rows(raised(x)) for x in (student, teacher, *negatives))
    means = (None, None) if log_mean is None else log_mean.unbind()
    forward = noise_contrast(student, teacher, stored[1], keep, temperature, means[0])
    return forward + noise_contrast(teacher, student, stored[0], keep, temperature, means[1])


class CRDConfig(TapNodeKeys, ScaleKeys):
    """Keys of the method ``crd``."""

    weight: Weight = Field(0.04, description="factor of all terms; see docs/weights.md")
    dim: PositiveInt = Field(128, description="width of both embeddings")
    temperature: PositiveFloat = Field(0.07, description="τ")
    queue: PositiveInt = Field(256, description="stored nodes per class")


class CRD(NodeMethod[CRDConfig]):
    """Term ``crd``, the same value on all processes."""

    name = "crd"
    kind = "relation"
    paper_weight = 0.8
    paper = "Tian, Krishnan, Isola: Contrastive Representation Distillation, arXiv 1910.10699"
    year = 2020
    equation = (
        "mean_i [softplus(−a_i) + Σ_k softplus(a_ik)], a = x·y/τ − log(m · mean exp(x·y/τ)), for "
        "student and for teacher anchors"
    )
    cost = "a mean over the features, two linear layers, M·Q·dim for M nodes and Q stored ones"
    exempt: ClassVar = {
        **NodeMethod.exempt,
        "perfect_student": "its trained layers separate the few nodes of a small batch",
    }
    conversions: ClassVar = {
        "RepDistiller, mdistiller": Conversion(
            0.8, note="temperature 0.07, dim 128, 16384 negatives"
        ),
    }

    log_mean: Tensor
    measured: Tensor
    _surely_measured: bool

    def build(self, spec: BuildContext) -> None:
        width, other = spec.student[self.config.tap], spec.teacher[self.teacher_tap]
        self.student_embedding = nn.Linear(width.channels, self.config.dim)
        self.teacher_embedding = nn.Linear(other.channels, self.config.dim)
        self.queue = NodeQueue(spec.num_classes, self.config.queue, 2 * self.config.dim)
        self.register_buffer("log_mean", torch.zeros(2))
        self.register_buffer("measured", torch.zeros((), dtype=torch.bool))
        # torch's has no types
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]
        self._surely_measured = False

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        own, other, classes = self._embedded(student, teacher, context)
        stored, keep = self.queue.others(classes)
        value = crd_loss(
            own,
            other,
            negatives=(stored[:, : self.config.dim], stored[:, self.config.dim :]),
            keep=keep & self.measured,
            temperature=self.config.temperature,
            log_mean=self.log_mean,
        )
        return {"crd": Term(value)}

    def after_step(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> None:
        own, other, classes = self._embedded(student, teacher, context)
        self.queue.append(torch.cat([own, other], dim=1), classes)
        stored, keep = self.queue.others(classes)
        # The buffer is read until it is set, and never again: each reading waits for the device.
        self._surely_measured = self._surely_measured or bool(self.measured)
        if not self._surely_measured and keep.any():
            stored_own, stored_other = stored.chunk(2, dim=1)
            for side, pair in enumerate(((own, stored_other), (other, stored_own))):
                self.log_mean[side] = log_mean_exp(*pair, keep, self.config.temperature)
            self.measured.fill_(True)

    def _embedded(
        self, student: Outputs, teacher: Outputs, context: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings (M, dim) of both networks at length 1, and the queue (M,) of each node."""
        nodes = self.nodes(student, teacher, context)
        # Without classes, images share the queues by index: none is its own negative.
        shared = nodes.images % len(self.queue.entries)
        classes = nodes.classes if self.config.needs_labels else shared
        with autocast(nodes.images.device.type, enabled=False):
            own = unit_rows(self.student_embedding(nodes.student[0]))
            other = unit_rows(self.teacher_embedding(nodes.teacher[0]))
        return own, other, classes


def _forget(method: CRD, keys: object) -> None:
    """After loading a state: what was known of the one before holds no more."""
    method._surely_measured = False


def noise_contrast(
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor,
    keep: Tensor | None,
    temperature: float,
    log_mean: Tensor | None = None,
) -> Tensor:
    """Mean over anchors of −log P(its positive is real) − Σ log P(a negative is noise).

    Args:
        anchors: (M, D).
        positives: (M, D), one of each anchor.
        negatives: (Q, D).
        keep: (M, Q) bool, which of them are negatives of which anchor; None: all. Anchors
            without negatives are excluded from the mean.
        temperature: τ.
        log_mean: log of the mean of exp(x·y / τ), see ``log_mean_exp``; None: of these negatives.

    Returns:
        A scalar; a differentiable zero if no anchor has a negative.

    Raises:
        ValueError: shapes do not match.
    """
    expected = len(anchors), len(negatives)
    if keep is None:
        keep = torch.ones(expected, dtype=torch.bool, device=anchors.device)
    shapes = [tuple(x.shape) for x in (anchors, positives, negatives, keep)]
    if shapes[0] != shapes[1] or shapes[0][1:] != shapes[2][1:] or shapes[3] != expected:
        raise ValueError(
            "anchors, positives, negatives and keep have shapes {}, {}, {} and {}; expected "
            "(M, D), (M, D), (Q, D) and (M, Q)".format(*shapes)
        )
    with torch.autocast(anchors.device.type, enabled=False):
        positive = (anchors * positives).sum(dim=1) / temperature
        negative = anchors @ negatives.T / temperature
        if log_mean is None:
            log_mean = log_mean_exp(anchors, negatives, keep, temperature)
    count = keep.sum(dim=1)
    shift = log_mean.to(positive.dtype) + count.clamp(min=1).to(positive.dtype).log()
    others = softplus(negative - shift.unsqueeze(1)).masked_fill(~keep, 0).sum(dim=1)
    values = (softplus(shift - positive) + others).masked_fill(count == 0, 0)
    return values.sum() / (count > 0).sum().clamp(min=1)


@torch.no_grad()
def log_mean_exp(anchors: Tensor, negatives: Tensor, keep: Tensor, temperature: float) -> Tensor:
    """Logarithm of the mean of exp(x·y / τ) over anchors and their negatives; 0 without negatives.

    Args:
        anchors: (M, D).
        negatives: (Q, D).
        keep: (M, Q) bool, which of them are negatives of which anchor.
        temperature: τ.

    Returns:
        A scalar without gradient.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        kept = (anchors @ negatives.T)[keep] / temperature
    return kept.logsumexp(0) - math.log(len(kept)) if len(kept) else kept.sum()
