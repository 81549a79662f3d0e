"""ESPNet: Efficient Spatial Pyramid of Dilated Convolutions for Semantic Segmentation.

Mehta, Rastegari, Caspi, Shapiro, Hajishirzi, ECCV 2018, arXiv 1803.06815 (figures 1 and 4, with the
light-weight decoder; α2 and α3 are our p and q). As in the authors' network for testing, the
decoder takes the first convolution's output without the image beside it. No layer has a bias.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkd.config.schema import ModelConfig
from segkd.errors import ConfigError
from segkd.models.network import Network
from segkd.models.taps import Record

_EPS = 1e-3
_DILATIONS = (1, 2, 4, 8, 16)


class ESPNet(Network):
    """ESPNet for images whose sides are multiples of 8; logits come at full resolution.

    Taps: ``stage1`` (16 channels, stride 2), ``stage2`` (64, 4), ``stage3`` (128, 8), ``head``
    (``width`` channels, 2).

    Options:
        p, q: blocks after the down-sampling to stride 4 and to stride 8.
        width: channels of the decoder; default: as many as classes, at least 5.
    """

    name: ClassVar[str] = "espnet"

    def __init__(
        self,
        config: ModelConfig,
        num_classes: int,
        *,
        p: int = 2,
        q: int = 8,
        width: int | None = None,
    ) -> None:
        super().__init__(config, num_classes)
        least = len(_DILATIONS)  # each branch of a block has a channel
        width = max(num_classes, least) if width is None else width
        for name, value, smallest in (("p", p, 1), ("q", q, 1), ("width", width, least)):
            if type(value) is not int or value < smallest:
                raise ConfigError(f"options.{name}: got {value!r}, expected {smallest} or more")
        self.divisor = 8
        self.encoder = Encoder(p, q)
        self.decoder = Decoder(width)
        self.classifier = nn.ConvTranspose2d(width, num_classes, 2, stride=2, bias=False)

    def compute(self, images: Tensor, record: Record) -> Tensor:
        head = self.decoder(*self.encoder(images, record))
        record("head", head)
        return self.classifier(head)

    def tap_names(self) -> list[str]:
        return ["stage1", "stage2", "stage3", "head", "logits"]


class Encoder(nn.Module):
    """Images (B, 3, H, W) to 16, 131 and 256 channels at strides 2, 4 and 8.

    The image, averaged to the size of the features, joins them before each down-sampling.
    """

    def __init__(self, p: int, q: int) -> None:
        super().__init__()
        conv = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.stage1 = nn.Sequential(conv, *norm_act(16))
        self.join1 = nn.Sequential(*norm_act(16 + 3))
        self.down2 = ESP(16 + 3, 64, stride=2)
        self.stage2 = nn.Sequential(*(ESP(64, 64) for _ in range(p)))
        self.join2 = nn.Sequential(*norm_act(64 + 64 + 3))
        self.down3 = ESP(64 + 64 + 3, 128, stride=2)
        self.stage3 = nn.Sequential(*(ESP(128, 128) for _ in range(q)))
        self.join3 = nn.Sequential(*norm_act(128 + 128))

    def forward(self, images: Tensor, record: Record) -> tuple[Tensor, Tensor, Tensor]:
        one = self.stage1(images)
        record("stage1", one)
        half = halved(images)
        two_first = self.down2(self.join1(torch.cat([one, half], 1)))
        two = self.stage2(two_first)
        record("stage2", two)
        joined = self.join2(torch.cat([two, two_first, halved(half)], 1))
        three_first = self.down3(joined)
        three = self.stage3(three_first)
        record("stage3", three)
        return one, joined, self.join3(torch.cat([three_first, three], 1))


class ESP(nn.Module):
    """Efficient spatial pyramid, (B, C, h, w) to (B, C', h/stride, w/stride).

    A reduction and five dilated convolutions, whose outputs except the first are summed
    cumulatively and concatenated.

    Args:
        in_channels, channels: C and C'.
        stride: 2 reduces by a strided 3x3 convolution, 1 by a 1x1 one.
        residual: adds the input if channels and size are equal; default: at stride 1.
    """

    def __init__(
        self, in_channels: int, channels: int, *, stride: int = 1, residual: bool | None = None
    ) -> None:
        super().__init__()
        inner = channels // len(_DILATIONS)
        first = channels - inner * (len(_DILATIONS) - 1)
        kernel = 3 if stride == 2 else 1
        self.residual = stride == 1 if residual is None else residual
        self.reduce = nn.Conv2d(in_channels, inner, kernel, stride, kernel // 2, bias=False)
        self.branches = nn.ModuleList(
            nn.Conv2d(inner, first if d == 1 else inner, 3, padding=d, dilation=d, bias=False)
            for d in _DILATIONS
        )
        self.norm, self.activation = norm_act(channels)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.reduce(x)
        first, second, *others = self.branches
        parts = [first(reduced), second(reduced)]
        for branch in others:
            parts.append(parts[-1] + branch(reduced))
        y = torch.cat(parts, 1)
        return self.activation(self.norm(x + y if self.residual else y))


class Decoder(nn.Module):
    """Features of the encoder to (B, width, H/2, W/2): reduce, up-sample and merge (RUM)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score3 = nn.Sequential(
            nn.Conv2d(256, width, 1, bias=False), nn.BatchNorm2d(width, eps=_EPS)
        )
        self.up3 = nn.ConvTranspose2d(width, width, 2, stride=2, bias=False)
        self.score2 = nn.Conv2d(131, width, 1, bias=False)
        self.join = nn.Sequential(*norm_act(2 * width))
        self.block = ESP(2 * width, width, residual=False)
        self.up2 = nn.Sequential(
            nn.ConvTranspose2d(width, width, 2, stride=2, bias=False), *norm_act(width)
        )
        conv = nn.Conv2d(width + 16, width, 3, padding=1, bias=False)
        self.merge = nn.Sequential(conv, *norm_act(width))

    def forward(self, one: Tensor, two: Tensor, three: Tensor) -> Tensor:
        x = torch.cat([self.score2(two), self.up3(self.score3(three))], 1)
        x = self.up2(self.block(self.join(x)))
        return self.merge(torch.cat([x, one], 1))


def norm_act(channels: int) -> tuple[nn.BatchNorm2d, nn.PReLU]:
    """Batch norm and PReLU of a number of channels."""
    return nn.BatchNorm2d(channels, eps=_EPS), nn.PReLU(channels)


def halved(x: Tensor) -> Tensor:
    """An image or map (B, C, h, w) at half of its sides, rounded up, as both ESPNets take it."""
    return F.avg_pool2d(x, 3, stride=2, padding=1)
