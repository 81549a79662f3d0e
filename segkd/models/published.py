"""Networks as MMSegmentation and torchvision publish them, for weights that fit no smp decoder.

The encoder is one of smp or timm. ``tu-resnet101c`` is MMSegmentation's ResNetV1c-101,
``tu-resnet101s`` CIRKD's; a file given as ``checkpoint:`` chooses it by itself.
"""

from typing import ClassVar

from torch import nn

from segkd.config.schema import ModelConfig
from segkd.models.published_heads import (
    ASPPDecoder,
    FCNDecoder,
    MixDecoder,
    PSPDecoder,
    SeparableASPPDecoder,
)
from segkd.models.smp import SmpNetwork


class _Published(SmpNetwork):
    """An smp model whose decoder is replaced; ``host`` is the architecture of that model."""

    host: ClassVar[str] = "deeplabv3"
    has_encoder = True

    def __init__(self, config: ModelConfig, num_classes: int, decoder_options: dict) -> None:
        output_stride = decoder_options.pop("output_stride", None)
        options = {"encoder_output_stride": output_stride} if output_stride else {}
        super().__init__(
            config.model_copy(update={"arch": self.host, "options": options}), num_classes
        )
        self.config = config.model_copy(update={"normalize": self.config.normalize})
        self.decoder = self._decoder(self.encoder.out_channels, **decoder_options)
        channels = decoder_options["channels"]
        self.segmentation_head = nn.Sequential(nn.Conv2d(channels, num_classes, 1))

    def _decoder(self, encoder_channels: list[int], **options) -> nn.Module:
        raise NotImplementedError


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

    def _decoder(self, encoder_channels: list[int], **options) -> nn.Module:
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

    def _decoder(self, encoder_channels: list[int], **options) -> nn.Module:
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

    def _decoder(self, encoder_channels: list[int], **options) -> nn.Module:
        return ASPPDecoder(encoder_channels, **options)


class DeepLabV3Plus(DeepLabV3):
    """MMSegmentation's DeepLabV3+."""

    name = "mmseg_deeplabv3plus"

    def _decoder(self, encoder_channels: list[int], **options) -> nn.Module:
        return SeparableASPPDecoder(encoder_channels, **options)


class SegFormer(_Published):
    """MMSegmentation's SegFormer, encoders ``mit_b0`` to ``mit_b5``."""

    name = "mmseg_segformer"
    host = "segformer"

    def __init__(self, config: ModelConfig, num_classes: int, *, channels: int = 256) -> None:
        super().__init__(config, num_classes, {"channels": channels})

    def _decoder(self, encoder_channels: list[int], **options) -> nn.Module:
        return MixDecoder(encoder_channels, **options)
