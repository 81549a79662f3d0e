"""Several teachers as one: mean of probabilities or logits, by their loss at each pixel, at random.

Members may differ in stride: probabilities are reduced to the element-wise smallest (h, w), and
then combined. The outputs are log-probabilities.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from segkd.methods.base import nearest
from segkd.models.class_map import safe_log
from segkd.models.frozen import average, completed, reduced
from segkd.structures import Outputs

Combine = Literal["mean", "logits", "by_loss", "random"]
Draw = Callable[[str], torch.Generator]


@dataclass(frozen=True)
class Ensemble:
    """Which teachers make another one, and how.

    Attributes:
        members: their names.
        combine: ``mean`` of probabilities; mean of ``logits``; ``by_loss``: the mean of
            probabilities, weighted at each pixel by the members' cross-entropy; ``random``: one
            member per step.
        temperature: of the weights of ``by_loss``.
    """

    members: tuple[str, ...]
    combine: Combine = "mean"
    temperature: float = 1.0

    def drawn(self, generator: torch.Generator | None) -> tuple[str, ...]:
        """The members of a step: one for ``random``, except without a generator; else all."""
        if self.combine != "random" or generator is None:
            return self.members
        return (self.members[int(torch.randint(len(self.members), (), generator=generator))],)

    def combined(self, parts: Sequence[Outputs], labels: Tensor | None) -> Outputs:
        """The outputs of the ensemble as log-probabilities.

        Everything but the logits is as in ``frozen.average``.

        Args:
            parts: outputs of ``drawn`` members, with logits or log-probabilities (B, K, h_i, w_i).
            labels: (B, H, W) int64; values outside of 0 … K−1 are void; None: all are.
        """
        mean = average(list(parts))
        size = (mean.logits.shape[2], mean.logits.shape[3])
        if self.combine == "logits":
            logs = [safe_log(share) for share in completed(reduced(parts, size), parts)]
            return replace(mean, logits=safe_log(torch.stack(logs).mean(0).softmax(1)))
        if self.combine == "by_loss" and labels is not None:
            shares = reduced(parts, size)
            weights = loss_weights(shares, nearest(labels, *size), temperature=self.temperature)
            # A part has no say where the label is a class that it does not know.
            every = zip(weights, completed(shares, parts), strict=True)
            weighted = [w[:, None] * p for w, p in every]
            return replace(mean, logits=safe_log(sum(weighted[1:], weighted[0])))
        return mean


def loss_weights(shares: Sequence[Tensor], labels: Tensor, *, temperature: float = 1.0) -> Tensor:
    """The weight of each teacher at each pixel: softmax over teachers of −cross-entropy / τ.

        w_t = p_t(y)^(1/τ) / Σ_u p_u(y)^(1/τ),   1 / T at void pixels

    Args:
        shares: probabilities (B, K, h, w) of T teachers.
        labels: (B, h, w) int64; values outside of 0 … K−1 are void.
        temperature: τ; small: the best teacher of each pixel, large: the mean.

    Returns:
        (T, B, h, w), which sums to 1 over T.
    """
    known = (labels >= 0) & (labels < shares[0].shape[1])
    target = labels.where(known, torch.zeros_like(labels))[:, None]
    own = torch.stack([safe_log(share.gather(1, target)[:, 0]) for share in shares])
    return (own.masked_fill(~known, 0.0) / temperature).softmax(0)


def in_order(
    ensembles: Mapping[str, Ensemble],
) -> tuple[dict[str, Ensemble], list[str]]:
    """Ensembles in an order in which each comes after its members, and those in a circle."""
    ordered: dict[str, Ensemble] = {}
    while True:
        left = [name for name in ensembles if name not in ordered]
        ready = [
            name
            for name in left
            if all(part in ordered or part not in ensembles for part in ensembles[name].members)
        ]
        if not ready:
            return ordered, sorted(left)
        ordered |= {name: ensembles[name] for name in ready}
