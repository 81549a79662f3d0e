"""Focal cross-entropy of the cell in which a lane is, row by row.

Qin, Wang, Li: Ultra Fast Structure-aware Deep Lane Detection, ECCV 2020, arXiv 2004.11757, L_cls;
focal as in the authors' code for CULane (cfzd/Ultra-Fast-Lane-Detection, gamma 2):

    L = mean over images, lanes and rows of −(1 − p)^γ log p,   p = P(true cell, or "none")

Cells come from the annotated points, joined by straight lines; rows in padding do not count.
Existence follows: a lane that is absent is "none" in all rows.
"""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat

from segkd.losses.base import TaskLoss, TaskLossConfig
from segkd.losses.row_targets import rows_and_cells
from segkd.ops.row_cells import UNKNOWN
from segkd.structures import Batch, Outputs, Term


class RowCellsConfig(TaskLossConfig):
    """Options of ``task.losses.row_cells``."""

    gamma: NonNegativeFloat = Field(2.0, description="of the focal factor; 0: cross-entropy")


class RowCells(TaskLoss[RowCellsConfig]):
    """Mean over rows of lanes that are known. The Term's count is their number."""

    name = "row_cells"
    of_rows: ClassVar[bool] = True
    Config = RowCellsConfig

    def forward(self, outputs: Outputs, batch: Batch) -> Term:
        """The Term of ``outputs.logits`` (B, L+1, R, G) against the lanes of ``batch``.

        Raises:
            ConfigError: the network does not classify rows.
            DataError: the data has no lanes, or another number of them.
        """
        logits, target = rows_and_cells(outputs, batch, self.name)
        known = target != UNKNOWN
        scores = F.pad(logits, (1, 0)).log_softmax(3)  # "none" has the logit 0
        log_share = scores.gather(3, target.clamp(min=-1).add(1).unsqueeze(3)).squeeze(3)
        rest = (1 - log_share.exp()).clamp(min=0)
        losses = -log_share if self.config.gamma == 0 else -log_share * rest**self.config.gamma
        count = known.sum()
        return Term((losses * known).sum() / count.clamp(min=1), count.double())
