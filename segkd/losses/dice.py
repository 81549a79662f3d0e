"""Soft Dice loss over the classes of each image.

V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation,
Milletari et al., 3DV 2016, arXiv 1606.04797; squared denominator as in its equation for D:

    D[b,k] = 2 Σ_i p_i[k] g_i[k] / (Σ_i p_i[k]² + Σ_i g_i[k]²)      i: valid pixels of image b
    loss   = mean over images of the mean over classes present in the image of 1 - D[b,k]

Per image instead of per batch, so that it does not depend on batch size and processes. A present
class has Σ g² >= 1: no smoothing constant is needed. Absent classes are skipped.
"""

import torch

from segkd.losses.base import TaskLoss
from segkd.losses.targets import logits_and_target
from segkd.structures import Batch, Outputs, Term


class Dice(TaskLoss):
    """1 - soft Dice, in [0, 1]. The Term's count is the number of images with valid pixels."""

    name = "dice"

    def forward(self, outputs: Outputs, batch: Batch) -> Term:
        """The Term of ``outputs.logits`` (B, K, h, w) against ``batch.labels`` (B, H, W)."""
        logits, target = logits_and_target(outputs, batch)
        classes = torch.arange(self.num_classes, device=target.device).view(1, -1, 1, 1)
        truth = (target[:, None] == classes) & batch.valid[:, None]
        probability = logits.softmax(1) * batch.valid[:, None]
        overlap = (probability * truth).sum((2, 3))
        pixels = truth.sum((2, 3))
        dice = 2 * overlap / (probability.square().sum((2, 3)) + pixels.clamp(min=1))
        present = pixels > 0
        per_image = ((1 - dice) * present).sum(1) / present.sum(1).clamp(min=1)
        count = present.any(1).sum()
        return Term(per_image.sum() / count.clamp(min=1), count.double())
