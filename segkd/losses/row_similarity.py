"""Similarity of neighbouring rows: lanes are continuous.

Qin, Wang, Li: Ultra Fast Structure-aware Deep Lane Detection, ECCV 2020, arXiv 2004.11757, L_sim:

    L = mean over images, lanes and pairs of neighbouring rows of Σ_c |P[j, c] − P[j+1, c]|

P are the probabilities of the cells and of "none". The authors' code
(cfzd/Ultra-Fast-Lane-Detection) takes smooth L1 of the raw logits, averaged over cells, and has
weight 0 for CULane and 1 for TuSimple.
"""

from typing import ClassVar

import torch.nn.functional as F

from segkd.losses.base import TaskLoss
from segkd.losses.row_targets import rows_and_cells
from segkd.ops.row_cells import UNKNOWN
from segkd.structures import Batch, Outputs, Term


class RowSimilarity(TaskLoss):
    """In [0, 2]. The Term's count is the number of pairs of rows that are both known."""

    name = "row_similarity"
    of_rows: ClassVar[bool] = True

    def forward(self, outputs: Outputs, batch: Batch) -> Term:
        """The Term of ``outputs.logits`` (B, L+1, R, G); of labels, only where rows are known.

        Raises:
            ConfigError: the network does not classify rows.
            DataError: the data has no lanes, or another number of them.
        """
        logits, target = rows_and_cells(outputs, batch, self.name)
        shares = F.pad(logits, (1, 0)).softmax(3)
        known = target != UNKNOWN
        pairs = known[:, :, 1:] & known[:, :, :-1]
        apart = (shares[:, :, 1:] - shares[:, :, :-1]).abs().sum(3)
        count = pairs.sum()
        return Term((apart * pairs).sum() / count.clamp(min=1), count.double())
