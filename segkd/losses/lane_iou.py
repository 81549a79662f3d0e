"""Soft IoU loss over the lanes of each image.

Hou, Ma, Liu, Loy: Learning Lightweight Lane Detection CNNs by Self Attention Distillation,
ICCV 2019, arXiv 1908.00821, equation for L_IoU, corrected to have the overlap as numerator and
probabilities instead of pixel counts (as printed, it has no gradient and may be negative):

    IoU[b,l] = Σ_i p_i g_i / Σ_i (p_i + g_i - p_i g_i)     i: valid pixels of image b, lane l
    loss     = mean of 1 - IoU[b,l] over the lanes present in their image

p is the softmax over all classes, g is 1 on the lane's pixels. Lane l is class l + 1, class 0 the
background. The public PyTorch code (InhwanBae/ENet-SAD_Pytorch) takes the fourth class from the
end instead of the last four, with a softmax that excludes the background. A lane that is absent
from an image would add a constant 1 without a gradient, and is skipped.
"""

import torch

from segkd.errors import ConfigError
from segkd.losses.base import TaskLoss, TaskLossConfig
from segkd.losses.targets import logits_and_target
from segkd.structures import Batch, Outputs, Term


class LaneIoU(TaskLoss):
    """1 - soft IoU, in [0, 1]. The Term's count is the number of present lanes of all images.

    Raises:
        ConfigError: there is no class other than the background.
    """

    name = "lane_iou"

    def __init__(self, config: TaskLossConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        if num_classes < 2:
            raise ConfigError(
                "task.losses.lane_iou: the data has one class, the background, and so no lanes. "
                "Remove this entry"
            )

    def forward(self, outputs: Outputs, batch: Batch) -> Term:
        """The Term of ``outputs.logits`` (B, K, h, w) against ``batch.labels`` (B, H, W)."""
        logits, target = logits_and_target(outputs, batch)
        lanes = torch.arange(1, self.num_classes, device=target.device).view(1, -1, 1, 1)
        truth = target[:, None] == lanes
        probability = logits.softmax(1)[:, 1:] * (target != batch.ignore_index)[:, None]
        overlap = (probability * truth).sum((2, 3))
        pixels = truth.sum((2, 3))
        # A present lane has a pixel, so its union is 1 or more.
        union = (probability.sum((2, 3)) + pixels - overlap).clamp(min=1)
        present = pixels > 0
        count = present.sum()
        total = ((1 - overlap / union) * present).sum()
        return Term(total / count.clamp(min=1), count.double())
