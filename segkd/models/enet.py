"""ENet: A Deep Neural Network Architecture for Real-Time Semantic Segmentation.

Paszke, Chaurasia, Kim, Culurciello, 2016, arXiv 1606.02147 (table 1 and figure 2). Numbers of
stages are the paper's plus one: ``stage1`` is the initial block, ``stage4`` the paper's stage 3.
As in the authors' code (e-lab/ENet-training), the encoder has PReLU and the decoder ReLU, batch
norms have an epsilon of 1e-3, an asymmetric pair is 1x5 then 5x1, and only the encoder drops
channels. The biases of their middle convolutions (693 numbers with 3 stages) are left out: a batch
norm follows each of them and takes any bias away.

With ``stages: 4`` it is the network of ENet-SAD (Hou et al., ICCV 2019, arXiv 1908.00821, section
3.3): E1 to E4 are our ``stage2`` to ``stage5``, and the decoder takes E3 and E4 together.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkd.config.schema import ModelConfig
from segkd.errors import ConfigError
from segkd.models.network import Network
from segkd.models.taps import Record

_RATIO = 4  # channels of a bottleneck's ends over those inside
_DROPOUT = 0.1
_EARLY_DROPOUT = 0.01  # the paper's stage 1
_EPS = {1: 1e-5, 2: 1e-3}  # of batch norms, by version
_PAIR = "encoder.stage2.2.branch.3.0.weight"  # the first half of an asymmetric pair


class ENet(Network):
    """ENet for images whose sides are multiples of 8; logits come at full resolution.

    Taps: ``stage1`` (16 channels, stride 2), ``stage2`` (64, 4), ``stage3`` and ``stage4``
    (128, 8), ``stage5`` (128, 8; with 4 stages), ``head`` (16, 2).

    Options:
        stages: 3, or 4 as in ENet-SAD.
        share: stages 3, 4 and 5 are the same module, as in the public PyTorch code of ENet-SAD,
            with common batch-norm statistics. This is not in the paper.
        dropout: probability of spatial dropout; a tenth of it up to ``stage2``, as in the paper.
            0 suits short trainings from scratch: after 500 steps on synthetic roads F1 was 19 with
            0 and 14 with 0.1 (one run each).
        version: 2; 1 is the network of segkd up to 0.1: epsilon 1e-5, 5x1 before 1x5, dropout in
            the decoder as well. Files of that network are recognised by their weights.
    """

    name: ClassVar[str] = "enet"

    def __init__(
        self,
        config: ModelConfig,
        num_classes: int,
        *,
        stages: int = 3,
        share: bool = False,
        dropout: float = _DROPOUT,
        version: int = 2,
    ) -> None:
        super().__init__(config, num_classes)
        if type(stages) is not int or stages not in (3, 4):
            raise ConfigError(f"options.stages: got {stages!r}, expected 3, or 4 for ENet-SAD's")
        if not isinstance(share, bool):
            raise ConfigError(f"options.share: got {share!r}, expected true or false")
        if type(dropout) not in (int, float) or not 0 <= dropout < 1:
            raise ConfigError(f"options.dropout: got {dropout!r}, expected 0 or more, below 1")
        if type(version) is not int or version not in _EPS:
            raise ConfigError(f"options.version: got {version!r}, expected 2, or 1 for old files")
        self.divisor = 8
        self.stages, self.dropout = stages, dropout
        self.encoder = Encoder(stages, share)
        self.decoder = Decoder(128 if stages == 3 else 256)
        self.classifier = nn.ConvTranspose2d(16, num_classes, 2, stride=2)
        for module in self.encoder.modules():
            if isinstance(module, nn.Dropout2d):
                module.p *= dropout / _DROPOUT
        self._set_version(version)

    def _set_version(self, version: int) -> None:
        """Makes it the network of a version; parameters stay the same objects."""
        self.version = version
        options = self.config.options | {"version": version}
        self.config = self.config.model_copy(update={"options": options})
        for module in (*self.encoder.modules(), *self.decoder.modules()):
            if isinstance(module, nn.BatchNorm2d):
                module.eps = _EPS[version]
            elif isinstance(module, Bottleneck):
                module.order_pair(first_row=version == 2)
        for module in self.decoder.modules():
            if isinstance(module, nn.Dropout2d):
                module.p = self.dropout if version == 1 else 0.0

    def adopt_version(self, weights: Mapping[str, Tensor]) -> None:
        """Becomes the version that weights (by their names in it) are of."""
        pair = weights.get(_PAIR)
        if pair is not None and pair.ndim == 4:
            self._set_version(1 if pair.shape[2] > pair.shape[3] else 2)

    def compute(self, images: Tensor, record: Record) -> Tensor:
        deep, indices = self.encoder(images, record)
        joined = torch.cat(deep[1:], 1) if self.stages == 4 else deep[-1]
        head = self.decoder(joined, indices)
        record("head", head)
        return self.classifier(head)

    def tap_names(self) -> list[str]:
        return [*(f"stage{k}" for k in range(1, self.stages + 2)), "head", "logits"]


class Encoder(nn.Module):
    """Images (B, 3, H, W) to (B, 128, H/8, W/8), with the indices of both max-poolings."""

    def __init__(self, stages: int, share: bool) -> None:
        super().__init__()
        self.initial = Initial(16)
        self.down1 = DownBottleneck(16, 64, _EARLY_DROPOUT)
        self.stage1 = nn.Sequential(*(Bottleneck(64, dropout=_EARLY_DROPOUT) for _ in range(4)))
        self.down2 = DownBottleneck(64, 128, _DROPOUT)
        self._deep = ["stage2" if share else f"stage{k}" for k in range(2, stages + 1)]
        for name in dict.fromkeys(self._deep):
            self.add_module(name, _dilated_stage())

    def forward(self, images: Tensor, record: Record) -> tuple[list[Tensor], list[Tensor]]:
        x = self.initial(images)
        record("stage1", x)
        x, first = self.down1(x)
        x = self.stage1(x)
        record("stage2", x)
        x, second = self.down2(x)
        deep = []
        for number, name in enumerate(self._deep, start=3):
            x = getattr(self, name)(x)
            record(f"stage{number}", x)
            deep.append(x)
        return deep, [first, second]


class Decoder(nn.Module):
    """(B, 128, H/8, W/8) to (B, 16, H/2, W/2), unpooling with the encoder's indices."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.up4 = UpBottleneck(in_channels, 64)
        self.stage4 = nn.Sequential(*(Bottleneck(64, activation=nn.ReLU) for _ in range(2)))
        self.up5 = UpBottleneck(64, 16)
        self.stage5 = Bottleneck(16, activation=nn.ReLU)

    def forward(self, x: Tensor, indices: list[Tensor]) -> Tensor:
        x = self.stage4(self.up4(x, indices[1]))
        return self.stage5(self.up5(x, indices[0]))


class Initial(nn.Module):
    """(B, 3, H, W) to (B, 16, H/2, W/2): a strided convolution and a max-pooling, concatenated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels - 3, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.activation = nn.PReLU(channels)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.cat([self.conv(images), F.max_pool2d(images, 2)], dim=1)
        return self.activation(self.norm(x))


class Bottleneck(nn.Module):
    """Keeps (B, C, h, w): 1x1, 3x3 (or dilated, or 1x5 and 5x1), 1x1, and a shortcut."""

    def __init__(
        self,
        channels: int,
        *,
        dilation: int = 1,
        asymmetric: bool = False,
        dropout: float = _DROPOUT,
        activation: type[nn.Module] = nn.PReLU,
    ) -> None:
        super().__init__()
        inner = channels // _RATIO
        middle: nn.Module
        if asymmetric:
            middle = nn.Sequential(
                nn.Conv2d(inner, inner, (1, 5), padding=(0, 2), bias=False),
                nn.Conv2d(inner, inner, (5, 1), padding=(2, 0), bias=False),
            )
        else:
            middle = nn.Conv2d(inner, inner, 3, padding=dilation, dilation=dilation, bias=False)
        self.branch = _branch(
            nn.Conv2d(channels, inner, 1, bias=False), middle, inner, channels, dropout, activation
        )
        self.activation = _make(activation, channels)

    def order_pair(self, *, first_row: bool) -> None:
        """Makes an asymmetric pair 1x5 then 5x1, or the other way round."""
        pair = self.branch.get_submodule("3")
        if isinstance(pair, nn.Sequential) and (pair[0].kernel_size == (1, 5)) != first_row:
            for conv in (layer for layer in pair if isinstance(layer, nn.Conv2d)):
                conv.kernel_size, conv.padding = conv.kernel_size[::-1], conv.padding[::-1]
                conv.weight.data = conv.weight.data.transpose(2, 3).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x + self.branch(x))


class DownBottleneck(nn.Module):
    """(B, C, h, w) to (B, C', h/2, w/2): max-pooling padded with zero channels, plus a branch."""

    def __init__(self, in_channels: int, channels: int, dropout: float) -> None:
        super().__init__()
        inner = channels // _RATIO
        self.extra = channels - in_channels
        self.branch = _branch(
            nn.Conv2d(in_channels, inner, 2, stride=2, bias=False),
            nn.Conv2d(inner, inner, 3, padding=1, bias=False),
            inner,
            channels,
            dropout,
            nn.PReLU,
        )
        self.activation = nn.PReLU(channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The output (B, C', h/2, w/2), and the pooling indices (B, C, h/2, w/2) int64."""
        pooled, indices = F.max_pool2d(x, 2, return_indices=True)
        shortcut = F.pad(pooled, (0, 0, 0, 0, 0, self.extra))
        return self.activation(shortcut + self.branch(x)), indices


class UpBottleneck(nn.Module):
    """(B, C, h, w) to (B, C', 2h, 2w): unpooling of a projection, plus a transposed convolution."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        inner = channels // _RATIO
        self.shortcut = nn.Sequential(
            nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )
        self.branch = _branch(
            nn.Conv2d(in_channels, inner, 1, bias=False),
            nn.ConvTranspose2d(inner, inner, 3, stride=2, padding=1, output_padding=1, bias=False),
            inner,
            channels,
            _DROPOUT,
            nn.ReLU,
        )
        self.activation = nn.ReLU()

    def forward(self, x: Tensor, indices: Tensor) -> Tensor:
        return self.activation(unpool(self.shortcut(x), indices) + self.branch(x))


def unpool(x: Tensor, indices: Tensor) -> Tensor:
    """(B, C, h, w) to (B, C, 2h, 2w): each value goes to its index, zeros elsewhere.

    Equal to ``max_unpool2d``; as a scatter it is deterministic on GPUs and can be exported.
    """
    batch, channels, height, width = x.shape
    grid = x.new_zeros(batch, channels, 4 * height * width)
    filled = grid.scatter(2, indices.flatten(2), x.flatten(2))
    return filled.view(batch, channels, 2 * height, 2 * width)


def _branch(
    first: nn.Module,
    middle: nn.Module,
    inner: int,
    channels: int,
    dropout: float,
    activation: type[nn.Module],
) -> nn.Sequential:
    return nn.Sequential(
        first,
        nn.BatchNorm2d(inner),
        _make(activation, inner),
        middle,
        nn.BatchNorm2d(inner),
        _make(activation, inner),
        nn.Conv2d(inner, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.Dropout2d(dropout),
    )


def _make(activation: type[nn.Module], channels: int) -> nn.Module:
    return activation(channels) if activation is nn.PReLU else activation()


def _dilated_stage() -> nn.Sequential:
    return nn.Sequential(
        Bottleneck(128),
        Bottleneck(128, dilation=2),
        Bottleneck(128, asymmetric=True),
        Bottleneck(128, dilation=4),
        Bottleneck(128),
        Bottleneck(128, dilation=8),
        Bottleneck(128, asymmetric=True),
        Bottleneck(128, dilation=16),
    )
