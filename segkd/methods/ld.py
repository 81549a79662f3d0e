"""Row-wise localisation distillation: matches where a lane is in each row of an image.

Zheng, Ye, Wang, Ren, Zuo, Hou, Cheng: Localization Distillation for Dense Object Detection. CVPR
2022, arXiv 2102.12252. There a box edge is a distribution over bins; a lane has one position per
row, and the bins are the columns. This form has not been published as far as we know.

    L = mean over gated rows of T² Σ_x q_t log(q_t / q_s),   q = softmax(o / T) over the columns x
    o = log p / (1 − p), p the lane's class probability; unlike a raw logit it is determined by p
    position (weight 0): smooth L1 of both expected columns Σ_x q x, in widths of the image

A softmax always has a peak, so rows without the lane would contribute noise. A row counts (is
gated) if its lane exists (by annotation; in images without one, by the teacher's existence branch
if it has one), if the teacher's probability there exceeds ``threshold`` (which includes unlabelled
parts of a lane), and if the annotated lane is at most ``max_width`` wide: a horizontal lane has no
single position in a row.
Taps: the logits of both, whose lanes must have the same order.

A student that classifies rows (arch ``row_anchor``) has distributions over cells by itself: o are
its logits of cells, and a teacher's map is taken at its rows and cells. It has a further term, for
its "not in this row", which a softmax over cells leaves out: presence, the cross-entropy of the
student's probability that the lane is in a row with the teacher's (of a map: the highest
probability in the row, times that of its existence branch if it has one), a mean over all rows. A
teacher of the same rows works, too.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from segkd.errors import ConfigError, DataError
from segkd.methods.base import Context, Conversion, Method, MethodConfig, Needs
from segkd.ops.lane_rows import LaneRows, anchored_rows, lane_rows
from segkd.ops.resize import common_size
from segkd.ops.row_cells import at_cells
from segkd.ops.target import target_map
from segkd.structures import Batch, Outputs, Term


def ld_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    exist: Tensor | None = None,
    mask: Tensor | None = None,
    temperature: float = 2.0,
    threshold: float = 0.3,
    parity: bool = False,
) -> Tensor:
    """Mean over gated rows of T² · KL(teacher ‖ student) over the columns.

    Args:
        student: logits (B, K, h, w); class 0 is the background, lane l is class l + 1.
        teacher: logits or log-probabilities (B, K, h', w'); detached.
        exist: bool or weights, (B, L) of lanes or (B, L, h) of their rows; None: all 1.
        mask: (B, h, w) bool at the smaller of both sizes, True where positions are valid; None:
            all. Invalid positions are excluded from a row.
        temperature: T of the softmax over columns.
        threshold: a row counts if the teacher's highest probability of the lane is above it.
        parity: softmax over the lanes' logits in every row, as published for box edges; the
            threshold has no effect, and log-probabilities of the teacher are not supported.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no row counts.

    Raises:
        ValueError: shapes do not match.
    """
    threshold = -1.0 if parity else threshold
    rows = lane_rows(student, teacher, exist=exist, mask=mask, threshold=threshold, raw=parity)
    return rows.divergence(temperature)


class LDConfig(MethodConfig):
    """Keys of the method ``ld``."""

    temperature: PositiveFloat = Field(2.0, description="T of the softmax over columns")
    threshold: float = Field(
        0.3, ge=0, lt=1, description="of the teacher's highest probability in a row"
    )
    max_width: float = Field(
        0.2, gt=0, le=1, description="share of a row that a labelled lane may take"
    )

    parity: bool = Field(
        False, description="softmax over logits in every row, as published for box edges"
    )


class LD(Method[LDConfig]):
    """Terms ``ld`` and ``position``, means over gated rows; of row anchors ``presence``, too."""

    name = "ld"
    kind = "response"
    paper = "Zheng et al.: Localization Distillation for Dense Object Detection, arXiv 2102.12252"
    year = 2022
    equation = "mean_gated_rows T² Σ_x q_t log(q_t / q_s), q = softmax(log-odds / T) over columns"
    cost = "a softmax over classes for each lane, then three passes over the lanes' maps"
    default_weights: Mapping[str, float] = {"ld": 1.0, "position": 0.0, "presence": 1.0}
    exempt: ClassVar = {
        "renamed_classes": "class 0 is the background",
        "swapped_axes": "lanes are positions in rows",
        "mask_not_padding": "labels determine the rows of a lane",
    }
    conversions: ClassVar = {
        "HikariTJU/LD": Conversion(0.25, {"w": -1}, "`parity`, T 10; its mean is over bins too")
    }

    @property
    def needs(self) -> Needs:
        both = ("logits",)
        accepts_log_prob = not self.config.parity
        return Needs(both, both, accepts_log_prob=accepts_log_prob, accepts_rows=True)

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        options = self.config
        build = self._anchored if student.rows else self._of_maps
        rows = build(student, teacher, batch, context)
        count = rows.gate.sum(dtype=torch.float64)
        terms = {"ld": Term(rows.divergence(options.temperature), count)}
        if options.weights.get("position", 0) > 0:
            terms["position"] = Term(rows.distance(options.temperature), count)
        if rows.known is not None:
            terms["presence"] = Term(rows.absence(), rows.known.sum(dtype=torch.float64))
        return terms

    def _of_maps(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> LaneRows:
        if teacher.rows:
            raise ConfigError(
                "method 'ld': the teacher classifies rows of lanes, and the student is a map of "
                "the image. Use a student of the same rows, or a teacher of segmentation"
            )
        size = common_size(student.logits, teacher.logits)
        labels = None if batch.labels is None else context.labels_at(*size)
        exist = self._exist(student, teacher, batch)
        return lane_rows(
            student.logits,
            teacher.logits,
            exist=self._narrow(exist, labels),
            mask=context.mask_at(*size),
            threshold=self._threshold,
            raw=self.config.parity,
        )

    def _anchored(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> LaneRows:
        whole, grid = batch.not_padding.shape[1:], (student.rows, student.logits.shape[3])
        labels = None if batch.labels is None else at_cells(context.labels_at(*whole), *grid)
        exist = self._exist(student, teacher, batch)
        try:
            rows = anchored_rows(
                student.logits,
                teacher.logits,
                student.rows,
                teacher_rows=teacher.rows,
                exist=self._narrow(exist, labels),
                mask=at_cells(context.mask_at(*whole), *grid),
                threshold=self._threshold,
                raw=self.config.parity,
            )
        except ValueError as error:
            raise ConfigError(f"method 'ld': {error}") from error
        if teacher.exist is not None and rows.presence is not None:
            chance = teacher.exist.to(rows.presence).sigmoid().flatten()
            rows = replace(rows, presence=rows.presence * chance.unsqueeze(1))
        return rows

    @property
    def _threshold(self) -> float:
        return -1.0 if self.config.parity else self.config.threshold

    def _narrow(self, exist: Tensor, labels: Tensor | None) -> Tensor:
        """``exist`` (B, L), by row (B, L, h) without rows of labels (B, h, w) along a lane."""
        if labels is None:
            return exist
        lanes = target_map(labels, exist.shape[1] + 1)[:, 1:]
        return exist.unsqueeze(2) & (lanes.sum(3) <= self.config.max_width * labels.shape[2])

    @staticmethod
    def _exist(student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Which lanes exist, (B, L) bool.

        Raises:
            DataError: the data has labels, but not of lanes.
        """
        known = batch.extra.get("exist")
        if known is None and teacher.exist is None and batch.labels is not None:
            raise DataError(
                "method 'ld' is for lanes: it needs a lane dataset, which annotates which lanes "
                "exist, or a teacher with an existence branch (exist_head). Otherwise use cwd or kd"
            )
        guess = torch.ones_like(student.logits[:, 1:, 0, 0], dtype=torch.bool)
        if teacher.exist is not None:
            guess = teacher.exist > 0
        return guess if known is None else torch.where(known.isnan(), guess, known > 0.5)
