"""Collaborative learning: networks trained together match a target made of all their logits.

Guo, Wang, Wu, Yu, Liang, Hu, Luo: Online Knowledge Distillation via Collaborative Learning.
CVPR 2020, pages 11020 to 11029 (no arXiv).

    L_k = task_k + T² · mean over pixels of KL(p_t ‖ p_k),   p = softmax(z / T)
    min_logit  z_t = min_l (z_l − z_l[y]), for each class;  y: the label of the pixel
    naive      z_t = the logits of the network with the lowest cross-entropy at the pixel

Taps: the logits of student and peers at the smallest size among them; the target has no gradient.
The paper has one target per image, here each pixel has its own. Void pixels, which teach only with
``mask: not_padding``, have the mean of the logits as a target. Left out: KDCL-Linear solves a
quadratic program per target and KDCL-General weights networks by their errors on a held-out set;
and all networks see the same view of an image, where the paper distorts it for each.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from segkd.methods.base import Context, Conversion, Needs
from segkd.methods.shared.peers import PeerKeys, PeerMethod
from segkd.ops.masked import position_mask
from segkd.ops.resize import match_sizes
from segkd.ops.softmax_kl import mean_softmax_kl
from segkd.ops.target import has_class
from segkd.structures import Batch, Outputs, Term

Target = Literal["min_logit", "naive"]


def kdcl_target(
    logits: Sequence[Tensor],
    labels: Tensor,
    *,
    target: Target = "min_logit",
    ignore_index: int = 255,
) -> Tensor:
    """The logits that all networks learn from; without gradient.

    Args:
        logits: (B, K, h, w) of each network.
        labels: (B, h, w) int64; any value outside of 0 … K−1 is void.
        target: how they are joined.
        ignore_index: a further label of void pixels, whose target is the mean.

    Returns:
        (B, K, h, w).

    Raises:
        ValueError: labels and logits differ in size.
    """
    stacked = torch.stack([one.detach() for one in logits])
    known = (has_class(labels, stacked[0]) & (labels != ignore_index)).unsqueeze(1)
    chosen = labels.unsqueeze(1).masked_fill(~known, 0).expand(len(stacked), -1, -1, -1, -1)
    right = stacked.gather(2, chosen)  # (n, B, 1, h, w)
    if target == "min_logit":
        joined = (stacked - right).amin(0)
    else:
        best = (stacked.logsumexp(2, keepdim=True) - right).argmin(0, keepdim=True)
        joined = stacked.gather(0, best.expand(1, *stacked.shape[1:]))[0]
    return torch.where(known, joined, stacked.mean(0))


def kdcl_loss(
    student: Tensor,
    peers: Sequence[Tensor],
    *,
    labels: Tensor,
    mask: Tensor | None = None,
    temperature: float = 2.0,
    target: Target = "min_logit",
    ignore_index: int = 255,
) -> Tensor:
    """Mean over valid pixels of T² · KL(joint target ‖ student) over the classes.

    Args:
        student: logits (B, K, h, w) of the network that learns.
        peers: logits (B, K, h_l, w_l) of the others.
        labels: (B, h', w') int64 at the smallest of all sizes; any value outside of 0 … K−1 is
            void.
        mask: (B, h', w') bool, True where pixels are valid; None: all.
        temperature: T.
        target: how logits are joined, see ``kdcl_target``.
        ignore_index: a further label of void pixels.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no pixel is valid.

    Raises:
        ValueError: labels or mask have another shape.
    """
    logits = match_sizes(student, *peers, mask=mask)
    mask = position_mask(logits[0], mask)
    return next(_values(logits, labels, mask, temperature, target, ignore_index))


def _values(
    logits: Sequence[Tensor],
    labels: Tensor,
    mask: Tensor,
    temperature: float,
    target: Target,
    ignore_index: int,
) -> Iterator[Tensor]:
    """``kdcl_loss`` of each network in turn, with the others as peers, on logits of one size."""
    joint = kdcl_target(logits, labels, target=target, ignore_index=ignore_index)
    for own in logits:
        yield mean_softmax_kl(own, joint, mask, temperature=temperature)


class KDCLConfig(PeerKeys):
    """Keys of the method ``kdcl``."""

    target: Target = Field("min_logit", description="how the logits of all networks are joined")
    temperature: PositiveFloat = Field(2.0, description="T of both softmaxes")


class KDCL(PeerMethod[KDCLConfig]):
    """Terms ``student`` and one per peer, by its name: what each learns from the joint target."""

    name = "kdcl"
    kind = "online"
    needs = Needs(student=("logits",), labels=True)
    paper = "Guo et al.: Online Knowledge Distillation via Collaborative Learning, CVPR 2020"
    year = 2020
    equation = "L_k = task_k + T² mean_pixels KL(p_t ‖ p_k), z_t = min_l (z_l − z_l[y])"
    cost = "per peer the whole step of another network; n softmax-KLs of logits"
    conversions: ClassVar = {
        "paper": Conversion(1.0, note="T 2; not compared with code: none was found")
    }

    def self_loss(self, student: Outputs, batch: Batch, context: Context) -> dict[str, Term]:
        logits, mask = self.cohort(student, context)
        labels = context.labels_at(*mask.shape[1:])
        keys = self.config.temperature, self.config.target, batch.ignore_index
        values = _values(list(logits.values()), labels, mask, *keys)
        count = mask.sum(dtype=torch.float64)
        return {name: Term(value, count) for name, value in zip(logits, values, strict=True)}
