"""An auxiliary head for deep supervision, used in training only."""

from torch import nn


class FCNHead(nn.Sequential):
    """Conv 3x3, batch norm, ReLU, dropout, conv 1x1: features (B, C, h, w) to logits (B, K, h, w).

    The FCN head that PSPNet uses on the encoder's fourth stage (Zhao et al., CVPR 2017,
    section 3.2).

    Args:
        in_channels: C.
        channels: of the hidden layer.
        num_classes: K.
    """

    def __init__(self, in_channels: int, channels: int, num_classes: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Dropout2d(0.1),
            nn.Conv2d(channels, num_classes, 1),
        )
