"""Networks of MMSegmentation and torchvision, for published weights that fit no smp decoder.

The encoder is one of smp or timm. ``tu-resnet101c`` is MMSegmentation's ResNetV1c-101,
``tu-resnet101s`` CIRKD's; a file given as ``checkpoint:`` selects it automatically.

Decoders follow MMSegmentation where smp's of the same name differ, and so do the names of their
parts, so that its weights fit: a convolution, its normalisation and a ReLU are ``conv`` and ``bn``
of one block. Each decoder takes smp's list of encoder features (B, C, h, w) and returns
(B, channels, h, w), after the dropout before the classifier.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkd.config.schema import ModelConfig
from segkd.errors import ConfigError
from segkd.models.smp import SmpNetwork

_DROPOUT = 0.1
_STRIDES = (8, 16)  # of dilated encoders


class _Published(SmpNetwork):
    """An smp model whose decoder is replaced; ``host`` is the architecture of that model."""

    host: ClassVar[str] = "deeplabv3"
    has_encoder = chooses_encoder = True

    def __init__(
        self, config: ModelConfig, num_classes: int, decoder_options: dict[str, Any]
    ) -> None:
        _checked(decoder_options)
        output_stride = decoder_options.pop("output_stride", None)
        if output_stride not in (None, *_STRIDES):
            raise ConfigError(
                f"options.output_stride: {output_stride!r} of arch '{config.arch}'. Give "
                f"{' or '.join(map(str, _STRIDES))}"
            )
        options = {"encoder_output_stride": output_stride} if output_stride else {}
        super().__init__(
            config.model_copy(update={"arch": self.host, "options": options}), num_classes
        )
        self.config = config.model_copy(update={"normalize": self.config.normalize})
        self.decoder = self._decoder(self.encoder.out_channels, **decoder_options)
        channels = decoder_options["channels"]
        self.segmentation_head = nn.Sequential(nn.Conv2d(channels, num_classes, 1))

    def _decoder(self, encoder_channels: list[int], **options: Any) -> nn.Module:
        raise NotImplementedError


def _checked(options: dict[str, Any]) -> None:
    """Raises ConfigError for a width that is no positive number, or a switch that is none."""
    for key, value in options.items():
        if key in ("channels", "pool_channels") and (type(value) is not int or value < 1):
            raise ConfigError(f"options.{key}: got {value!r}, expected a number of channels")
        if key == "align_corners" and not isinstance(value, bool):
            raise ConfigError(f"options.{key}: got {value!r}, expected true or false")


class FCN(_Published):
    """torchvision's FCN: a 3x3 convolution to ``channels``, then the classifier."""

    name = "fcn"

    def __init__(
        self,
        config: ModelConfig,
        num_classes: int,
        *,
        channels: int = 512,
        output_stride: int = 8,
    ) -> None:
        super().__init__(
            config, num_classes, {"channels": channels, "output_stride": output_stride}
        )

    def _decoder(self, encoder_channels: list[int], **options: Any) -> nn.Module:
        return FCNDecoder(encoder_channels, **options)


class PSPNet(_Published):
    """MMSegmentation's (and CIRKD's) PSPNet."""

    name = "mmseg_pspnet"

    def __init__(
        self,
        config: ModelConfig,
        num_classes: int,
        *,
        channels: int = 512,
        pool_channels: int = 512,
        align_corners: bool = False,
        output_stride: int = 8,
    ) -> None:
        options = {"pool_channels": pool_channels, "align_corners": align_corners}
        options |= {"channels": channels, "output_stride": output_stride}
        super().__init__(config, num_classes, options)

    def _decoder(self, encoder_channels: list[int], **options: Any) -> nn.Module:
        return PSPDecoder(encoder_channels, **options)


class DeepLabV3(_Published):
    """MMSegmentation's DeepLabV3."""

    name = "mmseg_deeplabv3"

    def __init__(
        self, config: ModelConfig, num_classes: int, *, channels: int = 512, output_stride: int = 8
    ) -> None:
        super().__init__(
            config, num_classes, {"channels": channels, "output_stride": output_stride}
        )

    def _decoder(self, encoder_channels: list[int], **options: Any) -> nn.Module:
        return ASPPDecoder(encoder_channels, **options)


class DeepLabV3Plus(DeepLabV3):
    """MMSegmentation's DeepLabV3+."""

    name = "mmseg_deeplabv3plus"

    def _decoder(self, encoder_channels: list[int], **options: Any) -> nn.Module:
        return SeparableASPPDecoder(encoder_channels, **options)


class SegFormer(_Published):
    """MMSegmentation's SegFormer, encoders ``mit_b0`` to ``mit_b5``."""

    name = "mmseg_segformer"
    host = "segformer"

    def __init__(self, config: ModelConfig, num_classes: int, *, channels: int = 256) -> None:
        super().__init__(config, num_classes, {"channels": channels})

    def _decoder(self, encoder_channels: list[int], **options: Any) -> nn.Module:
        return MixDecoder(encoder_channels, **options)


class ConvBlock(nn.Module):
    """Convolution without bias, batch norm, ReLU: (B, C, h, w) to (B, C', h, w)."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, dilation: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=False,
        )
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class SeparableBlock(nn.Module):
    """A depth-wise 3x3 block, then a 1x1 block: (B, C, h, w) to (B, C', h, w)."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.depthwise_conv = ConvBlock(in_channels, in_channels, 3, dilation, groups=in_channels)
        self.pointwise_conv = ConvBlock(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise_conv(self.depthwise_conv(x))


def pooled(size: int, in_channels: int, out_channels: int) -> nn.Sequential:
    """Average pooling, then a 1x1 block: (B, C, h, w) to (B, C', size, size)."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(size), ConvBlock(in_channels, out_channels, 1))


class FCNDecoder(nn.Sequential):
    """One 3x3 block on the last feature: the head of torchvision's FCN."""

    def __init__(self, encoder_channels: Sequence[int], channels: int) -> None:
        super().__init__(ConvBlock(encoder_channels[-1], channels, 3), nn.Dropout2d(_DROPOUT))

    def forward(self, features: list[Tensor]) -> Tensor:
        return super().forward(features[-1])


class PSPDecoder(nn.Module):
    """Pyramid pooling (Zhao et al., CVPR 2017) with a 3x3 bottleneck.

    Args:
        pool_channels: of each of the four pooled maps.
        align_corners: of the up-sampling of pooled maps; True in CIRKD, False in MMSegmentation.
    """

    def __init__(
        self,
        encoder_channels: Sequence[int],
        channels: int,
        pool_channels: int,
        align_corners: bool,
    ) -> None:
        super().__init__()
        last, self.align_corners = encoder_channels[-1], align_corners
        self.psp_modules = nn.ModuleList(pooled(size, last, pool_channels) for size in (1, 2, 3, 6))
        self.bottleneck = ConvBlock(last + 4 * pool_channels, channels, 3)
        self.dropout = nn.Dropout2d(_DROPOUT)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = features[-1]
        parts = [_resized(module(x), x, self.align_corners) for module in self.psp_modules]
        return self.dropout(self.bottleneck(torch.cat([x, *parts], 1)))


class ASPPDecoder(nn.Module):
    """Atrous pyramid (Chen et al., arXiv 1706.05587): image mean, 1x1, three rates, 3x3."""

    def __init__(
        self, encoder_channels: Sequence[int], channels: int, separable: bool = False
    ) -> None:
        super().__init__()
        last = encoder_channels[-1]
        self.image_pool = pooled(1, last, channels)
        block = SeparableBlock if separable else _plain_block
        rated = [block(last, channels, dilation=rate) for rate in (12, 24, 36)]
        self.aspp_modules = nn.ModuleList([ConvBlock(last, channels, 1), *rated])
        self.bottleneck = block(5 * channels, channels)
        self.dropout = nn.Dropout2d(_DROPOUT)

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.dropout(self.pyramid(features[-1]))

    def pyramid(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, channels, h, w)"""
        parts = [_resized(self.image_pool(x), x), *(module(x) for module in self.aspp_modules)]
        return self.bottleneck(torch.cat(parts, 1))


class SeparableASPPDecoder(ASPPDecoder):
    """DeepLabV3+ (Chen et al., ECCV 2018): a separable pyramid, joined with 48 shallow channels."""

    def __init__(self, encoder_channels: Sequence[int], channels: int) -> None:
        super().__init__(encoder_channels, channels, separable=True)
        self.c1_bottleneck = ConvBlock(encoder_channels[2], 48, 1)
        self.sep_bottleneck = nn.Sequential(
            SeparableBlock(channels + 48, channels), SeparableBlock(channels, channels)
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        shallow = self.c1_bottleneck(features[2])
        deep = _resized(self.pyramid(features[-1]), shallow)
        return self.dropout(self.sep_bottleneck(torch.cat([deep, shallow], 1)))


class MixDecoder(nn.Module):
    """SegFormer's (Xie et al., NeurIPS 2021), with a norm and a ReLU after each projection."""

    def __init__(self, encoder_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(ConvBlock(c, channels, 1) for c in encoder_channels[-4:])
        self.fusion_conv = ConvBlock(4 * channels, channels, 1)
        self.dropout = nn.Dropout2d(_DROPOUT)

    def forward(self, features: list[Tensor]) -> Tensor:
        parts = [conv(x) for conv, x in zip(self.convs, features[-4:], strict=True)]
        parts = [_resized(part, parts[0]) for part in parts]
        return self.dropout(self.fusion_conv(torch.cat(parts, 1)))


def _plain_block(in_channels: int, out_channels: int, dilation: int = 1) -> ConvBlock:
    return ConvBlock(in_channels, out_channels, 3, dilation)


def _resized(x: Tensor, like: Tensor, align_corners: bool = False) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=align_corners)
