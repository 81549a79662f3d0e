"""A critic of single positions: a small perceptron on the channels of each, as 1x1 convolutions."""

import torch
from torch import Tensor, nn


class PositionCritic(nn.Module):
    """Scores of each position of a map, from its channels alone.

    1x1 convolutions with LeakyReLU 0.2 in between. Nothing is normalised and nothing is seen of the
    neighbours, so padding has no influence. Weights and sums are never in half precision, even
    under autocast.

    Args:
        channels: C.
        widths: channels after each layer but the last.
        outputs: scores per position.
    """

    def __init__(self, channels: int, widths: tuple[int, ...], outputs: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in widths:
            layers += [nn.Conv2d(channels, width, kernel_size=1), nn.LeakyReLU(0.2)]
            channels = width
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, outputs, kernel_size=1))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, C, h, w) to (B, outputs, h, w)."""
        last = self.layers[-1]
        assert isinstance(last, nn.Conv2d)
        with torch.autocast(maps.device.type, enabled=False):
            scores: Tensor = self.layers(maps.to(last.weight.dtype))
        return scores
