"""Rows of lane maps: the horizontal position of each lane in each row, for two networks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from segkd.ops.masked import position_mask
from segkd.ops.resize import match_sizes
from segkd.ops.row_cells import cell_logits, cell_shares, map_at_rows
from segkd.ops.softmax_kl import softmax_kl

_NEAR = 0.02  # of the width, beta of smooth L1: as wide as a lane in CULane's metric


@dataclass(frozen=True)
class LaneRows:
    """Each lane of each image, flattened: M = B·L.

    Attributes:
        student, teacher: (M, h, w) scores of the lane; the teacher's without gradient.
        keep: (M, h, w) bool, valid positions.
        gate: (M, h, 1) weights of rows, 0 for those that do not count.
        presence: of a student that classifies rows, (M, h) the teacher's probability that the lane
            is in the row.
        known: likewise, (M, h) bool, rows of which the images show a part.
    """

    student: Tensor
    teacher: Tensor
    keep: Tensor
    gate: Tensor
    presence: Tensor | None = None
    known: Tensor | None = None

    def divergence(self, temperature: float) -> Tensor:
        """Mean over gated rows of T² · KL(teacher ‖ student) over the columns, a scalar."""
        pair, keep = (self.student, self.teacher), self.keep
        total = softmax_kl(*pair, self.gate, dim=2, keep=keep, temperature=temperature)
        return total / self._divisor()

    def distance(self, temperature: float) -> Tensor:
        """Mean over gated rows of the smooth L1 distance of expected columns, a scalar.

        Columns are in widths of the image.
        """
        width = self.keep.shape[2]
        columns = torch.arange(width, dtype=self.gate.dtype, device=self.gate.device)
        places = (columns + 0.5) / width
        low = torch.finfo(self.gate.dtype).min  # finite, for rows without valid positions
        own, target = (
            ((odds / temperature).masked_fill(~self.keep, low).softmax(2) * places).sum(2)
            for odds in (self.student, self.teacher)
        )
        distances = F.smooth_l1_loss(own, target, beta=_NEAR, reduction="none")
        return (distances * self.gate.squeeze(2)).sum() / self._divisor()

    def absence(self) -> Tensor:
        """Mean over known rows of the cross-entropy of "the lane is in this row", a scalar.

        Of a student that classifies rows: its logit is Σ exp of its cells against "none".
        """
        assert self.presence is not None and self.known is not None  # see the class
        logits = self.student.masked_fill(~self.keep, torch.finfo(self.gate.dtype).min)
        losses = F.binary_cross_entropy_with_logits(
            logits.logsumexp(2), self.presence, reduction="none"
        )
        return (losses * self.known).sum() / self.known.sum().clamp(min=1)

    def _divisor(self) -> Tensor:
        total = self.gate.sum()
        return torch.where(total > 0, total, 1)


def lane_rows(
    student: Tensor,
    teacher: Tensor,
    *,
    exist: Tensor | None = None,
    mask: Tensor | None = None,
    threshold: float,
    raw: bool = False,
) -> LaneRows:
    """The rows of all lanes, gated.

    Args:
        student: logits (B, K, h, w); class 0 is the background, lane l is class l + 1.
        teacher: logits or log-probabilities (B, K, h', w').
        exist: bool or weights, (B, L) of lanes or (B, L, h) of their rows; None: all 1.
        mask: (B, h, w) bool at the smaller of both sizes; None: all positions.
        threshold: the teacher's highest probability in a gated row is above it.
        raw: scores are the lanes' logits instead of their log-odds.

    Raises:
        ValueError: shapes do not match.
    """
    student, teacher = match_sizes(student, teacher.detach(), mask=mask)
    own, target = log_odds(student), log_odds(teacher)
    keep = position_mask(own, mask).unsqueeze(1).expand_as(own)
    highest = target.masked_fill(~keep, -torch.inf).amax(3, keepdim=True)
    gate = (highest.sigmoid() > threshold).to(own.dtype)
    gate = gate * _weights(exist, gate) * keep.any(3, keepdim=True)
    if raw:
        own, target = (logits[:, 1:].to(own.dtype) for logits in (student, teacher))
    return LaneRows(*(x.flatten(0, 1) for x in (own, target, keep, gate)))


def anchored_rows(
    student: Tensor,
    teacher: Tensor,
    rows: Sequence[float],
    *,
    teacher_rows: Sequence[float] = (),
    exist: Tensor | None = None,
    mask: Tensor | None = None,
    threshold: float,
    raw: bool = False,
) -> LaneRows:
    """The rows of a student that classifies them, see ``ops.row_cells``, and a teacher's, gated.

    A map of a teacher is taken at the student's rows and cells (``map_at_rows``); the student's
    cells keep their number, so that each of them is taught.

    Args:
        student: logits (B, L+1, R, G).
        teacher: a map (B, L+1, h, w) of logits or log-probabilities, or with ``teacher_rows``
            logits (B, L+1, R, G').
        rows, teacher_rows: heights as shares; those of both networks must be the same.
        exist: as in ``lane_rows``, of lanes or of the student's rows.
        mask: (B, R, G) bool; None: all positions.
        threshold: the teacher's highest probability (of rows: that the lane is in the row) is
            above it in a gated row.
        raw: the teacher's scores are the lanes' logits instead of their log-odds.

    Raises:
        ValueError: shapes or rows do not match.
    """
    own, teacher, cells = cell_logits(student), teacher.detach(), student.shape[3]
    if own.shape[:2] != (teacher.shape[0], teacher.shape[1] - 1):
        raise ValueError(
            f"student has (images, lanes) {tuple(own.shape[:2])}, teacher "
            f"{(teacher.shape[0], teacher.shape[1] - 1)}: they must have the same lanes"
        )
    if teacher_rows:
        heights = zip(rows, teacher_rows, strict=False)
        if len(rows) != len(teacher_rows) or any(abs(a - b) > 1e-4 for a, b in heights):
            raise ValueError(
                f"student has {len(rows)} rows from {rows[0]:.4f} to {rows[-1]:.4f} of the height, "
                f"teacher {len(teacher_rows)} from {teacher_rows[0]:.4f} to "
                f"{teacher_rows[-1]:.4f}: give both the same options.rows and options.span"
            )
        target = F.interpolate(cell_logits(teacher), (len(rows), cells), mode="bilinear")
        present = cell_shares(teacher).sum(3)
    else:
        at_rows = map_at_rows(teacher, rows, cells)
        odds = log_odds(at_rows)
        target = at_rows[:, 1:] if raw else odds
        present = None
    keep = position_mask(own, mask).unsqueeze(1).expand_as(own)
    if present is None:
        present = odds.masked_fill(~keep, -torch.inf).amax(3).sigmoid()
    gate = (present > threshold).to(own.dtype).unsqueeze(3)
    gate = gate * _weights(exist, gate) * keep.any(3, keepdim=True)
    known, presence = keep.any(3), present.to(own.dtype)
    parts = (own, target.to(own.dtype), keep, gate, presence, known)
    return LaneRows(*(x.flatten(0, 1) for x in parts))


def _weights(exist: Tensor | None, gate: Tensor) -> Tensor | float:
    """``exist`` (B, L) or (B, L, h) as factors of a gate (B, L, h, 1). Raises ValueError."""
    if exist is None:
        return 1.0
    lanes, rows = gate.shape[:2], gate.shape[:3]
    if exist.shape not in (lanes, rows):
        raise ValueError(
            f"exist has shape {tuple(exist.shape)}, expected {tuple(lanes)} (images, lanes) "
            f"or {tuple(rows)} (images, lanes, rows)"
        )
    return exist.detach().to(gate).view(*exist.shape, *[1] * (4 - exist.ndim))


def log_odds(logits: Tensor) -> Tensor:
    """log p_k / (1 − p_k) of each class except the first: (B, K, h, w) -> (B, K−1, h, w).

    It is z_k minus the logsumexp of all other logits, finite for saturated logits as well, and
    the same for log-probabilities. Two tensors of the input's size are kept for backward, for any
    K; there is no double backward.

    Raises:
        ValueError: fewer than two classes.
    """
    if logits.shape[1] < 2:
        raise ValueError(f"log_odds: got {logits.shape[1]} class, expected 2 or more")
    return _LogOdds.apply(logits)


class _LogOdds(torch.autograd.Function):
    """Uses one exponential of all logits for every class except the largest of each pixel.

    A smaller class can be subtracted from the sum of exponentials, which keeps its largest part.
    Subtracting the largest would cancel: its sum is computed separately.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        top, index = logits.max(1, keepdim=True)
        parts = (logits - top).exp_()
        rest = parts.sum(1, keepdim=True).sub(parts).log_().add_(top)
        rest.scatter_(1, index, logits.scatter(1, index, -torch.inf).logsumexp(1, keepdim=True))
        ctx.save_for_backward(logits, rest)
        return (logits - rest)[:, 1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        logits, rest = ctx.saved_tensors
        top, index = logits.max(1, keepdim=True)
        gradient = torch.cat([torch.zeros_like(upstream[:, :1]), upstream], 1)
        # Class j has the share exp(z_j − rest_k) of what is not class k.
        others = logits.scatter(1, index, -torch.inf).sub_(rest.gather(1, index)).exp_()
        others.mul_(gradient.gather(1, index))
        smaller = (top - rest).exp_().mul_(gradient).scatter_(1, index, 0)
        parts = (logits - top).exp_()
        return gradient - others - parts * (smaller.sum(1, keepdim=True) - smaller)
