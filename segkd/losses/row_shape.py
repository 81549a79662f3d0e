"""Shape of lanes: mostly straight, their expected position changes evenly from row to row.

Qin, Wang, Li: Ultra Fast Structure-aware Deep Lane Detection, ECCV 2020, arXiv 2004.11757, L_shp:

    L = mean over images, lanes and three rows in a row of |(x[j] − x[j+1]) − (x[j+1] − x[j+2])|
    x[j] = Σ_c c · softmax_c(z[j])     over the cells alone, without "none"

x is in cells, as in the paper. Rows count where the lane is annotated in all three: a softmax over
cells always has a place, so rows without the lane would contribute noise. The paper takes all rows,
the authors' code (cfzd/Ultra-Fast-Lane-Detection) those of the upper half, with weight 0 in both of
its configurations.
"""

from typing import ClassVar

from segkd.losses.base import TaskLoss
from segkd.losses.row_targets import rows_and_cells
from segkd.ops.row_cells import expected_cells
from segkd.structures import Batch, Outputs, Term


class RowShape(TaskLoss):
    """In cells. The Term's count is the number of annotated triples of rows."""

    name = "row_shape"
    of_rows: ClassVar[bool] = True

    def forward(self, outputs: Outputs, batch: Batch) -> Term:
        """The Term of ``outputs.logits`` (B, L+1, R, G) against the lanes of ``batch``.

        Raises:
            ConfigError: the network does not classify rows.
            DataError: the data has no lanes, or another number of them.
        """
        logits, target = rows_and_cells(outputs, batch, self.name)
        there = target >= 0
        triples = there[:, :, 2:] & there[:, :, 1:-1] & there[:, :, :-2]
        place = expected_cells(logits.softmax(3))
        bend = (place[:, :, 2:] - 2 * place[:, :, 1:-1] + place[:, :, :-2]).abs()
        count = triples.sum()
        return Term((bend * triples).sum() / count.clamp(min=1), count.double())
