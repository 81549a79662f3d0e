"""Rows of a network and the cells of the annotated lanes, the inputs of losses of row anchors."""

import torch
from torch import Tensor

from segkd.errors import ConfigError, DataError
from segkd.losses.existence import EXIST
from segkd.ops.row_cells import cell_logits, cell_targets
from segkd.structures import Batch, Outputs

LANES = "lanes"  # (B, L, P, 2) in ``Batch.extra``: points of the annotated lanes


def rows_and_cells(outputs: Outputs, batch: Batch, loss: str) -> tuple[Tensor, Tensor]:
    """Logits of cells against "none", and the cells in which the lanes are.

    Args:
        outputs: with ``rows``, and logits (B, L+1, R, G).
        batch: with points of lanes.
        loss: key under ``task.losses``, for messages.

    Returns:
        (B, L, R, G), float32 or wider, and (B, L, R) int64 as of ``cell_targets``.

    Raises:
        ConfigError: the network does not classify rows.
        DataError: the data has no lanes, or another number of them.
    """
    if not outputs.rows:
        raise ConfigError(
            f"task.losses.{loss}: the network does not classify rows of lanes. Use "
            "student.arch=row_anchor, or remove this entry"
        )
    logits = cell_logits(outputs.logits)
    exist = batch.extra.get(EXIST)
    if exist is None:
        if batch.labels is None:
            raise DataError(
                "a task loss needs labels, but the batch has none: use a labelled training split, "
                "or set task.weight=0 to learn from the teacher only"
            )
        raise DataError(
            f"task.losses.{loss}: the data has no lanes. Use a lane dataset, or another network"
        )
    if exist.shape != logits.shape[:2]:
        raise DataError(
            f"task.losses.{loss}: the network returns (images, lanes) {tuple(logits.shape[:2])}, "
            f"the data has {tuple(exist.shape)}: set data.num_lanes to the network's"
        )
    # Without any point, no image of the batch has a label.
    lanes = batch.extra.get(LANES, exist.new_full((*exist.shape, 0, 2), torch.nan))
    target = cell_targets(lanes, exist, batch.not_padding, outputs.rows, logits.shape[3])
    return logits, target
