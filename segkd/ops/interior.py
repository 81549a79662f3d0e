"""Where a label is not near a border of its class."""

import torch.nn.functional as F
from torch import Tensor


def interior(labels: Tensor, radius: int) -> Tensor:
    """True where all labels within ``radius`` (a square window) are the same.

    The border of the image is no border of a class.

    Args:
        labels: (B, h, w), integers; void is a class like others here.
        radius: in positions; 0 keeps everything.

    Returns:
        (B, h, w) bool.
    """
    values = labels.unsqueeze(1).double()
    largest, smallest = (
        sign * F.max_pool2d(sign * values, 2 * radius + 1, stride=1, padding=radius)
        for sign in (1, -1)
    )
    return (largest == smallest).squeeze(1)
