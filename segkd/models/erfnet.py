"""ERFNet: Efficient Residual Factorized ConvNet for Real-Time Semantic Segmentation.

Romera, Álvarez, Bergasa, Arroyo, IEEE Transactions on Intelligent Transportation Systems 2018,
doi 10.1109/TITS.2017.2750080 (table I, figure 2c). As in the authors' code, convolutions have a
bias, batch norms an epsilon of 1e-3, and only the encoder drops channels.
"""

from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkd import checkpoint
from segkd.config.schema import ModelConfig
from segkd.errors import CheckpointError, ConfigError
from segkd.models import erfnet_maps
from segkd.models.network import Network
from segkd.models.taps import Record

if TYPE_CHECKING:
    from segkd.models.key_maps import Layout, State

_EPS = 1e-3
_EARLY_DROPOUT, _DROPOUT = 0.03, 0.3
_DILATIONS = (2, 4, 8, 16)


class ERFNet(Network):
    """ERFNet for images whose sides are multiples of 8; logits come at full resolution.

    Taps: ``stage1`` (16 channels, stride 2), ``stage2`` (64, 4), ``stage3`` and ``stage4``
    (128, 8; after the first and the second run of dilations), ``head`` (16, 2).

    ``weights: FILE`` loads an encoder in the layout of the author's code, e.g. the one that he
    trained on ImageNet, or that of a whole network.

    Options:
        dropout: probability of spatial dropout in ``stage3`` and ``stage4``.
        early_dropout: in ``stage2``. ERFNet-CULane has 0.1 for both.
    """

    name: ClassVar[str] = "erfnet"
    has_encoder: ClassVar[bool] = True

    def __init__(
        self,
        config: ModelConfig,
        num_classes: int,
        *,
        dropout: float = _DROPOUT,
        early_dropout: float = _EARLY_DROPOUT,
    ) -> None:
        if config.weights is not None:
            _check_file(config.weights)
        super().__init__(config, num_classes)
        for key, value in (("dropout", dropout), ("early_dropout", early_dropout)):
            if type(value) not in (int, float) or not 0 <= value < 1:
                raise ConfigError(f"options.{key}: got {value!r}, expected 0 or more, below 1")
        self.divisor = 8
        self.encoder, self.decoder = Encoder(dropout, early_dropout), _decoder()
        self.classifier = nn.ConvTranspose2d(16, num_classes, 2, stride=2)
        if config.weights is not None:
            self._load_encoder(config.weights)

    @staticmethod
    def statistics_of_file(source: str) -> tuple[list[float], list[float]] | None:
        """Mean and std with which the network of a weights file was trained; None: unknown.

        The author trained whole networks on values from 0 to 1, but the encoder alone, on
        ImageNet, with its statistics.

        Raises:
            SegKDError: the file cannot be read.
        """
        _check_file(source)
        return _read(source)[1].normalize

    def _load_encoder(self, source: str) -> None:
        """Loads a file with the author's names. Raises CheckpointError if it does not fit."""
        whole, layout = _read(source)
        found = erfnet_maps.renamed(whole)
        found = layout.as_rgb(found) if layout.as_rgb else found
        state = {key.removeprefix("encoder."): value for key, value in found.items()}
        whole_state = checkpoint.with_counters(self.encoder.state_dict(), state)
        checkpoint.restore(self.encoder, whole_state, f"weights: {source}")

    def compute(self, images: Tensor, record: Record) -> Tensor:
        head = self.decoder(self.encoder(images, record))
        record("head", head)
        return self.classifier(head)

    def tap_names(self) -> list[str]:
        return ["stage1", "stage2", "stage3", "stage4", "head", "logits"]


def _read(source: str) -> "tuple[State, Layout]":
    """The tensors of a file, perhaps of a whole network, and whose names they have."""
    from segkd.models.encoder_weights import located
    from segkd.models.foreign import read_state
    from segkd.models.key_maps import layout_of

    state = read_state(located(source))
    return state, layout_of(state)


def _check_file(source: str) -> None:
    """Raises ConfigError for a name instead of a file, CheckpointError for a missing file."""
    from segkd.models.encoder_weights import located

    path = located(source)
    if path.is_file():
        return
    if path.suffix.lower() in (".pth", ".pt", ".tar", ".safetensors"):
        raise CheckpointError(f"weights: there is no file {path}")
    raise ConfigError(
        f"weights: '{source}' of erfnet are not offered by any package. Give a file with its "
        "author's names, such as erfnet_encoder_pretrained.pth.tar, or null"
    )


class Encoder(nn.Module):
    """Images (B, 3, H, W) to (B, 128, H/8, W/8)."""

    def __init__(self, dropout: float = _DROPOUT, early_dropout: float = _EARLY_DROPOUT) -> None:
        super().__init__()
        self.stage1 = Downsampler(3, 16)
        self.stage2 = nn.Sequential(
            Downsampler(16, 64), *(Factorized(64, dropout=early_dropout) for _ in range(5))
        )
        self.stage3 = nn.Sequential(Downsampler(64, 128), *_dilated(dropout))
        self.stage4 = nn.Sequential(*_dilated(dropout))

    def forward(self, images: Tensor, record: Record) -> Tensor:
        x = images
        for name, stage in self.named_children():
            x = stage(x)
            record(name, x)
        return x


class Downsampler(nn.Module):
    """(B, C, h, w) to (B, C', h/2, w/2): a strided convolution and a max-pooling, concatenated."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels - in_channels, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(channels, eps=_EPS)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.conv(x), F.max_pool2d(x, 2)], dim=1)
        return self.activation(self.norm(x))


class Factorized(nn.Module):
    """Keeps (B, C, h, w): a residual block of two 3x3 convolutions as 3x1 and 1x3."""

    def __init__(self, channels: int, *, dilation: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *_pair(channels, 1), nn.ReLU(), *_pair(channels, dilation), nn.Dropout2d(dropout)
        )
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x + self.branch(x))


def _pair(channels: int, dilation: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, channels, (3, 1), padding=(dilation, 0), dilation=(dilation, 1)),
        nn.ReLU(),
        nn.Conv2d(channels, channels, (1, 3), padding=(0, dilation), dilation=(1, dilation)),
        nn.BatchNorm2d(channels, eps=_EPS),
    ]


def _dilated(dropout: float) -> list[Factorized]:
    return [Factorized(128, dilation=dilation, dropout=dropout) for dilation in _DILATIONS]


def _decoder() -> nn.Sequential:
    """(B, 128, H/8, W/8) to (B, 16, H/2, W/2)."""
    return nn.Sequential(*_upsampler(128, 64), *_refined(64), *_upsampler(64, 16), *_refined(16))


def _upsampler(in_channels: int, channels: int) -> list[nn.Module]:
    return [
        nn.ConvTranspose2d(in_channels, channels, 3, stride=2, padding=1, output_padding=1),
        nn.BatchNorm2d(channels, eps=_EPS),
        nn.ReLU(),
    ]


def _refined(channels: int) -> list[Factorized]:
    return [Factorized(channels) for _ in range(2)]
