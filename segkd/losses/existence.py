"""Lane existence: binary cross-entropy of the network's existence branch.

Pan et al., Spatial As Deep: Spatial CNN for Traffic Scene Understanding, AAAI 2018, arXiv
1712.06080; Hou et al., ICCV 2019, arXiv 1908.00821, with weight 0.1:

    L = mean over images and lanes of -e log p - (1 - e) log(1 - p),   p = sigmoid(logit)

e is NaN in images without annotation, which are excluded from the mean.
"""

import torch
import torch.nn.functional as F

from segkd.errors import ConfigError, DataError
from segkd.losses.base import TaskLoss
from segkd.structures import Batch, Outputs, Term

EXIST = "exist"  # (B, L) in ``Batch.extra``: 1 where a lane is annotated, 0, or NaN for unknown


class Existence(TaskLoss):
    """Mean cross-entropy of ``outputs.exist``. The Term's count is annotated images times lanes."""

    name = "existence"
    of_exist = True

    def forward(self, outputs: Outputs, batch: Batch) -> Term:
        """The Term of ``outputs.exist`` against ``batch.extra["exist"]``, both (B, L).

        Raises:
            ConfigError: the network has no existence branch.
            DataError: the data has no lane existence, or another number of lanes.
        """
        if outputs.exist is None:
            raise ConfigError(
                "task.losses.existence: the network has no existence branch. Add `exist_head: {}` "
                "to it, or remove this entry"
            )
        if EXIST not in batch.extra:
            raise DataError(
                "task.losses.existence: the data has no annotation of lane existence. Use a lane "
                "dataset, or remove this entry"
            )
        logits, truth = outputs.exist, batch.extra[EXIST]
        if logits.shape != truth.shape:
            raise DataError(
                f"task.losses.existence: the network returns (images, lanes) {tuple(logits.shape)},"
                f" the data has {tuple(truth.shape)}: set data.num_lanes to the network's"
            )
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        known = ~truth.isnan()
        losses = F.binary_cross_entropy_with_logits(
            logits, truth.nan_to_num().to(logits), reduction="none"
        )
        count = known.sum()
        return Term((losses * known).sum() / count.clamp(min=1), count.double())
