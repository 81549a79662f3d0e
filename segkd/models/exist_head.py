"""Branches that predict which lanes exist: features in, one logit per lane out.

Lane l is class l + 1. ``pooled`` takes images of any size, with one attention map per lane:

    e_l = Σ_i softmax_i(a_l) v_l      a, v: maps (L, h, w) from the features, i: positions

the attention pooling of Ilse et al., Attention-based Deep Multiple Instance Learning, ICML 2018,
arXiv 1802.04712. ``flat`` is P1 of the public PyTorch code of ENet-SAD
(InhwanBae/ENet-SAD_Pytorch) and of the authors' Torch release: a small class map is flattened, so
its weights fit one image size only. ``scnn`` has a dilated convolution before and takes maxima
where ``flat`` takes means: the branch of SCNN (Pan et al., AAAI 2018, arXiv 1712.06080) as in
ERFNet-CULane (cardwing/Codes-for-Lane-Detection).
"""

from collections.abc import Collection

from torch import Tensor, nn

from segkd.config.schema import ExistHeadConfig
from segkd.errors import ConfigError
from segkd.methods.base import TapInfo

_SCNN_WIDTH = 32  # channels of its first convolution


class ExistHead(nn.Module):
    """Existence logits (B, L) from tapped features (B, C, h, w), with L = K - 1.

    Args:
        config: the block ``exist_head:``.
        tap: name of the tapped features.
        info: their channels and stride.
        num_classes: K.

    Attributes:
        tap: name of the tapped features.

    Raises:
        ConfigError: there is no lane class, or the size is too small.
    """

    def __init__(self, config: ExistHeadConfig, tap: str, info: TapInfo, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise ConfigError(
                "exist_head: the data has one class, so there is no lane besides the background"
            )
        self.tap = tap
        if config.size is None:
            self.branch: nn.Module = PooledBranch(info.channels, config.channels, num_classes - 1)
        else:
            height, width = (-(-side // info.stride) for side in config.size)
            build = flat_branch if config.kind == "flat" else scnn_branch
            self.branch = build(info.channels, config.channels, num_classes, height, width)

    def forward(self, features: Tensor) -> Tensor:
        return self.branch(features)


class PooledBranch(nn.Module):
    """Evidence of each lane (B, L), averaged over all positions with the lane's attention map.

    Args:
        in_channels: of the features (B, C, h, w).
        channels: of the hidden layer.
        lanes: L.
    """

    def __init__(self, in_channels: int, channels: int, lanes: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
            nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )
        self.attention = nn.Conv2d(channels, lanes, 1)
        self.evidence = nn.Conv2d(channels, lanes, 1)

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.hidden(features)
        share = self.attention(hidden).flatten(2).softmax(2)
        return (share * self.evidence(hidden).flatten(2)).sum(2)


def flat_branch(
    in_channels: int, channels: int, num_classes: int, height: int, width: int
) -> nn.Sequential:
    """P1 for features (B, C, height, width): conv 1x1, softmax over classes, pool, two layers.

    Raises:
        ConfigError: features smaller than 2x2.
    """
    last = _flattened(nn.AvgPool2d(2), channels, num_classes, height, width)
    return nn.Sequential(nn.Conv2d(in_channels, num_classes, 1), *last)


def scnn_branch(
    in_channels: int, channels: int, num_classes: int, height: int, width: int
) -> nn.Sequential:
    """SCNN's: conv 3x3 of dilation 4, then as ``flat_branch``, with a max-pooling.

    Raises:
        ConfigError: features smaller than 2x2.
    """
    last = _flattened(nn.MaxPool2d(2), channels, num_classes, height, width)
    return nn.Sequential(
        nn.Conv2d(in_channels, _SCNN_WIDTH, 3, padding=4, dilation=4, bias=False),
        nn.BatchNorm2d(_SCNN_WIDTH, eps=1e-3),
        nn.ReLU(),
        nn.Dropout2d(0.1),
        nn.Conv2d(_SCNN_WIDTH, num_classes, 1),
        *last,
    )


def _flattened(
    pool: nn.Module, channels: int, num_classes: int, height: int, width: int
) -> list[nn.Module]:
    """Class scores (B, K, height, width) to lanes: softmax over classes, pool, two layers."""
    if min(height, width) < 2:
        raise ConfigError(
            f"exist_head.size: the tapped features are {height}x{width}, expected 2x2 or more"
        )
    return [
        nn.Softmax(dim=1),
        pool,
        nn.Flatten(),
        nn.Linear(num_classes * (height // 2) * (width // 2), channels),
        nn.ReLU(),
        nn.Linear(channels, num_classes - 1),
    ]


def deepest_stage(taps: Collection[str]) -> str:
    """The last stage of the encoder. Raises ConfigError if the network names no stage."""
    stages = [tap for tap in taps if tap.startswith("stage")]
    if not stages:
        raise ConfigError(f"the network names no stage. Give one of: {', '.join(taps)}")
    return stages[-1]


def check_size(
    size: tuple[int, int], only: tuple[int, int] | None, divisor: int
) -> tuple[int, int]:
    """``size``, checked to be a valid image size (H, W) of a network.

    Args:
        size: (H, W).
        only: the only size that the network takes; None: any.
        divisor: of both sides.

    Raises:
        ConfigError: not a valid size.
    """
    if only not in (None, size):
        raise ConfigError(
            f"exist_head.size: got {list(size)}, the network takes images of {list(only)} only"
        )
    if any(side % divisor for side in size):
        raise ConfigError(f"exist_head.size: got {list(size)}, expected multiples of {divisor}")
    return size
