"""Mutual learning: networks that are trained together match each other's class probabilities.

Zhang, Xiang, Hospedales, Lu: Deep Mutual Learning. CVPR 2018, arXiv 1706.00384.

    L_k = task_k + 1/(n−1) · Σ_{l≠k} T² · mean over pixels of KL(p_l ‖ p_k),   p = softmax(z / T)

Taps: the logits of student and peers, each a target without gradient for the others, at the
smallest size among them. All n networks begin with weights of their own, see the same images and
move at once, as in public code; the paper moves them in turn, each against the new predictions of
the others. It has T = 1. Some public code leaves out 1/(n−1), and adds 1e-8 inside logarithms.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from segkd.methods.base import Context, Conversion
from segkd.methods.shared.peers import PeerKeys, PeerMethod
from segkd.ops.masked import position_mask
from segkd.ops.resize import match_sizes
from segkd.ops.softmax_kl import softmax_kl
from segkd.structures import Batch, Outputs, Term


def dml_loss(
    student: Tensor,
    peers: Sequence[Tensor],
    *,
    mask: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Mean over peers and valid pixels of T² · KL(peer ‖ student) over the classes.

    Args:
        student: logits (B, K, h, w) of the network that learns.
        peers: logits (B, K, h_l, w_l) of the others, at least one; detached.
        mask: (B, h', w') bool at the smallest of all sizes, True where pixels are valid; None: all.
        temperature: T.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no pixel is valid.

    Raises:
        ValueError: the mask has another shape, or there are no peers.
    """
    if not peers:
        raise ValueError("dml_loss: got no peers, expected the logits of at least one")
    student, *others = match_sizes(student, *(peer.detach() for peer in peers), mask=mask)
    mask = position_mask(student, mask)
    rows = mask.unsqueeze(1)
    total = sum(
        (softmax_kl(student, other, rows, dim=1, temperature=temperature) for other in others),
        student.new_zeros(()),
    )
    return total / (len(others) * mask.sum().clamp(min=1))


class DMLConfig(PeerKeys):
    """Keys of the method ``dml``."""

    temperature: PositiveFloat = Field(1.0, description="T of both softmaxes")


class DML(PeerMethod[DMLConfig]):
    """Terms ``student`` and one per peer, by its name: what each learns from the others."""

    name = "dml"
    kind = "online"
    paper = "Zhang et al.: Deep Mutual Learning, arXiv 1706.00384"
    year = 2018
    equation = "L_k = task_k + 1/(n−1) Σ_{l≠k} T² mean_pixels KL(p_l ‖ p_k), p = softmax(z / T)"
    cost = "per peer the whole step of another network; n (n − 1) softmax-KLs of logits"
    conversions: ClassVar = {
        "paper; YingZhangDUT, Zoo": Conversion(1.0),
        "KD_methods_with_TF": Conversion(1.0, note="times n − 1: a sum over the others"),
    }

    def self_loss(self, student: Outputs, batch: Batch, context: Context) -> dict[str, Term]:
        logits, mask = self.cohort(student, context)
        count, temperature = mask.sum(dtype=torch.float64), self.config.temperature
        terms = {}
        for name, own in logits.items():
            others = [other for key, other in logits.items() if key != name]
            value = dml_loss(own, others, mask=mask, temperature=temperature)
            terms[name] = Term(value, count)
        return terms
