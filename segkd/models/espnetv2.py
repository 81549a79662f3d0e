"""ESPNetv2: A Light-weight, Power Efficient, and General Purpose Convolutional Neural Network.

Mehta, Rastegari, Shapiro, Hajishirzi, CVPR 2019, arXiv 1811.11431: the encoder (section 3, figure
1) with the decoder of the authors' later code, EdgeNets, which is the one that their public weights
for segmentation have: an efficient pyramid pooling after each up-sampling. As there, dilations of a
block are bounded by a receptive field that shrinks with depth, and nothing is dropped.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkd.config.schema import ModelConfig
from segkd.errors import ConfigError
from segkd.models.espnet import halved
from segkd.models.network import Network
from segkd.models.taps import Record

# Channels of the four levels by scale.
_CHANNELS = {
    0.5: (16, 32, 64, 128),
    1.0: (32, 64, 128, 256),
    1.25: (32, 80, 160, 320),
    1.5: (32, 96, 192, 384),
    2.0: (32, 128, 256, 512),
}
_REPEATS = (3, 7)  # blocks after the down-sampling to strides 8 and 16
_BRANCHES = 4
_DECODER = 16  # channels in the decoder are 4, 3 and 2 times this
_SMALLEST = 5  # side of a map in the pyramid


class ESPNetv2(Network):
    """ESPNetv2 for images whose sides are multiples of 16; logits come at stride 2.

    Taps, with channels for ``scale: 2.0``: ``stage1`` (32, stride 2), ``stage2`` (128, 4),
    ``stage3`` (256, 8), ``stage4`` (512, 16), ``head`` (``projection`` channels, 2).

    Options:
        scale: width of the encoder, 0.5, 1.0, 1.25, 1.5 or 2.0.
        projection: channels inside the pyramids; default: half the classes, at most 16.
    """

    name: ClassVar[str] = "espnetv2"

    def __init__(
        self,
        config: ModelConfig,
        num_classes: int,
        *,
        scale: float = 1.0,
        projection: int | None = None,
    ) -> None:
        super().__init__(config, num_classes)
        if type(scale) not in (int, float) or scale not in _CHANNELS:
            known = ", ".join(map(str, _CHANNELS))
            raise ConfigError(f"options.scale: got {scale!r}, expected one of {known}")
        if projection is None:
            projection = max(1, min(num_classes // 2, _DECODER))
        if type(projection) is not int or projection < 1:
            raise ConfigError(f"options.projection: got {projection!r}, expected 1 or more")
        self.divisor = 16
        self.encoder = Encoder(_CHANNELS[scale])
        self.decoder = Decoder(_CHANNELS[scale], projection)
        self.classifier = nn.Conv2d(projection, num_classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if self.classifier.bias is not None:
            nn.init.zeros_(self.classifier.bias)

    def compute(self, images: Tensor, record: Record) -> Tensor:
        head = self.decoder(*self.encoder(images, record))
        record("head", head)
        return self.classifier(head)

    def tap_names(self) -> list[str]:
        return ["stage1", "stage2", "stage3", "stage4", "head", "logits"]


class Encoder(nn.Module):
    """Images (B, 3, H, W) to features (B, C, h, w) at strides 2, 4, 8 and 16."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        one, two, three, four = channels
        self.stage1 = conv_norm_act(3, one, 3, stride=2)
        self.stage2 = DownSampler(one, two, limit=13)
        self.down3 = DownSampler(two, three, limit=11)
        self.stage3 = nn.Sequential(*(EESP(three, three, limit=9) for _ in range(_REPEATS[0])))
        self.down4 = DownSampler(three, four, limit=9)
        self.stage4 = nn.Sequential(*(EESP(four, four, limit=7) for _ in range(_REPEATS[1])))

    def forward(self, images: Tensor, record: Record) -> tuple[Tensor, ...]:
        one = self.stage1(images)
        record("stage1", one)
        small = halved(halved(images))
        two = self.stage2(one, small)
        record("stage2", two)
        small = halved(small)
        three = self.stage3(self.down3(two, small))
        record("stage3", three)
        four = self.stage4(self.down4(three, halved(small)))
        record("stage4", four)
        return one, two, three, four


class EESP(nn.Module):
    """Extremely efficient spatial pyramid, (B, C, h, w) to (B, C', h/stride, w/stride).

    A grouped projection, dilated depth-wise branches whose outputs are summed cumulatively, and a
    grouped expansion.

    Args:
        in_channels, channels: C and C'.
        limit: largest receptive field of a branch; larger ones get a dilation of 1.
        stride: with 2, residual connection and activation are left to the caller.
    """

    def __init__(self, in_channels: int, channels: int, *, limit: int, stride: int = 1) -> None:
        super().__init__()
        inner = channels // _BRANCHES
        fields = (3 + 2 * branch for branch in range(_BRANCHES))
        dilations = sorted((field - 1) // 2 if field <= limit else 1 for field in fields)
        self.reduce = conv_norm_act(in_channels, inner, 1, groups=_BRANCHES)
        self.branches = nn.ModuleList(
            nn.Conv2d(inner, inner, 3, stride, d, dilation=d, groups=inner, bias=False)
            for d in dilations
        )
        self.joined = nn.Sequential(nn.BatchNorm2d(channels), nn.PReLU(channels))
        self.expand = nn.Sequential(
            nn.Conv2d(channels, channels, 1, groups=_BRANCHES, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.activation = nn.PReLU(channels) if stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.reduce(x)
        sums = [self.branches[0](reduced)]
        for branch in self.branches[1:]:
            sums.append(branch(reduced) + sums[-1])
        y = self.expand(self.joined(torch.cat(sums, 1)))
        return y if self.activation is None else self.activation(x + y)


class DownSampler(nn.Module):
    """(B, C, h, w) to (B, C', h/2, w/2): average pooling and a strided EESP, plus the image."""

    def __init__(self, in_channels: int, channels: int, *, limit: int) -> None:
        super().__init__()
        self.block = EESP(in_channels, channels - in_channels, limit=limit, stride=2)
        self.image = nn.Sequential(
            conv_norm_act(3, 3, 3),
            nn.Conv2d(3, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.activation = nn.PReLU(channels)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        joined = torch.cat([halved(x), self.block(x)], 1)
        return self.activation(joined + self.image(image))


class Decoder(nn.Module):
    """Features of the encoder to (B, projection, H/2, W/2)."""

    def __init__(self, channels: tuple[int, ...], projection: int) -> None:
        super().__init__()
        widths = [4 * _DECODER, 3 * _DECODER, 2 * _DECODER]
        self.pyramids = nn.ModuleList(
            Pyramid(width, projection) for width in (channels[3], *widths)
        )
        self.widen = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(projection, width, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.PReLU(width),
            )
            for width in widths
        )
        self.lateral = nn.ModuleList(
            Lateral(channels[2 - number], width) for number, width in enumerate(widths)
        )
        self.merged = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(width), nn.PReLU(width)) for width in widths
        )

    def forward(self, one: Tensor, two: Tensor, three: Tensor, four: Tensor) -> Tensor:
        x = self.pyramids[0](four)
        for number, skipped in enumerate((three, two, one)):
            x = self.widen[number](x)
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = self.merged[number](self.lateral[number](skipped) + x)
            x = self.pyramids[number + 1](x)
        return x


class Pyramid(nn.Module):
    """Efficient pyramid pooling, (B, C, h, w) to (B, C', h, w): convolutions at five sizes."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.project = conv_norm_act(in_channels, channels, 1)
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
            for _ in range(5)
        )
        self.joined = nn.Sequential(nn.BatchNorm2d(5 * channels), nn.PReLU(5 * channels))
        self.merge = conv_norm_act(5 * channels, channels, 3, groups=channels)
        self.pool = PoolTo()

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(x)
        height, width = x.shape[-2:]
        size = (height, width)
        # Sizes in whole numbers: in floating point 70 times 0.1 rounds up to 8.
        double, wide, same, half, tenth = self.convs
        sums = [
            self.pool(double(_resized(x, _sides(size, 2, 1))), size),
            self.pool(wide(_resized(x, _sides(size, 3, 2))), size),
            same(x),
            _resized(half(self.pool(x, _sides(size, 1, 2))), size),
            _resized(tenth(self.pool(x, _sides(size, 1, 10))), size),
        ]
        y = self.joined(torch.cat(sums, 1))
        # From one size after the other to one channel after the other, each with its five sizes.
        shuffled = y.view(-1, 5, self.channels, height, width).transpose(1, 2).flatten(1, 2)
        return self.merge(shuffled)


class PoolTo(nn.Module):
    """Adaptive average pooling of (B, C, h, w) to a given size; replaced when exporting."""

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return F.adaptive_avg_pool2d(x, size)


class Lateral(nn.Module):
    """(B, C, h, w) to (B, C', h, w): a skip connection, gated by global pooling."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(in_channels, channels, 1, bias=False), nn.Sigmoid()
        )
        self.expand = conv_norm_act(
            in_channels, channels, 3, groups=math.gcd(in_channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.expand(x) * self.gate(x)


def conv_norm_act(
    in_channels: int, channels: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution without bias, batch norm, PReLU: (B, C, h, w) to (B, C', h/stride, w/stride)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
        nn.PReLU(channels),
    )


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


def _sides(size: tuple[int, int], numerator: int, denominator: int) -> tuple[int, int]:
    """(height, width) times a fraction, rounded up, but at least the smallest."""
    height, width = (
        torch.sym_max(_SMALLEST, (side * numerator + denominator - 1) // denominator)
        for side in size
    )
    return height, width  # type: ignore[return-value]  # SymInt stands for int in an export
