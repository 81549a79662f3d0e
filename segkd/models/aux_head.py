"""An auxiliary head for deep supervision: it trains with the network and is gone afterwards."""

from torch import nn


class FCNHead(nn.Sequential):
    """Conv 3x3, batch norm, ReLU, dropout, conv 1x1: (B, C, h, w) to logits (B, K, h, w).

    The head of FCN as PSPNet uses it on the encoder's fourth stage (Zhao et al., CVPR 2017,
    section 3.2).
    """

    def __init__(self, in_channels: int, channels: int, num_classes: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Dropout2d(0.1),
            nn.Conv2d(channels, num_classes, 1),
        )
