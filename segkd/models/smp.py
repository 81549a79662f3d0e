"""Every architecture and encoder of segmentation-models-pytorch as a Network."""

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from segkd.config.schema import ModelConfig
from segkd.errors import ODD_VALUES, ConfigError, did_you_mean, shortened
from segkd.models.encoder_options import checked as encoder_options_of
from segkd.models.encoder_options import image_size
from segkd.models.encoder_weights import downloading, from_timm, load_encoder_weights
from segkd.models.network import Network
from segkd.models.taps import Record
from segkd.models.unknown_options import unknown_option
from segkd.models.unused import drop_unused

# Arguments with a key of their own in the config, or with an effect after the logits.
_NOT_OPTIONS = {
    "self",
    "encoder_name",
    "encoder_weights",
    "in_channels",
    "classes",
    "activation",
    "upsampling",
    "aux_params",
    "kwargs",
}

_DEEPEST = 5  # stages of smp's encoders
_PATCH_OF_DPT = 16  # pixels, of which its decoder makes strides 4, 8, 16 and 32


class SmpNetwork(Network):
    """An smp model: encoder features are ``stage1`` …, ``head`` is the decoder's output.

    ``stage k`` is smp's encoder feature k, at stride 2^k unless the encoder is dilated; empty
    levels (MiT and other transformers have no stride 2) are not taps. In a ViT (``dpt``), stage k
    is the k-th tapped block. Logits are taken before the final up-sampling.

    ``options`` are smp's own arguments of the architecture, and

    - ``output_stride: 8 | 16``: dilates the encoder of an architecture that has no such argument,
      e.g. the published PSPNet is ``{encoder_depth: 5, output_stride: 8}``;
    - ``encoder_options``: arguments of a timm encoder (``tu-…``), e.g. ``{img_size: [512, 512]}``.

    Raises:
        ConfigError: unknown names or options, or an encoder that does not fit the decoder.
    """

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        model = _create(config, num_classes)
        if from_timm(config):
            with downloading(config):
                model = _create(config, num_classes, pretrained=True)
        self.encoder, self.decoder = model.encoder, model.decoder
        self.segmentation_head = model.segmentation_head
        if config.weights is not None and not from_timm(config):
            load_encoder_weights(self.encoder, config)
        if model.requires_divisible_input_shape:
            self.divisor = self.encoder.output_stride
        if config.arch == "dpt":  # its decoder halves the last map and doubles it again
            self.divisor *= 2
        self.fixed_size = only_size(self.encoder, config.options)
        if self.fixed_size and any(side % self.divisor for side in self.fixed_size):
            raise ConfigError(
                f"options.encoder_options.img_size: {config.arch} with {config.encoder} takes "
                f"multiples of {self.divisor}, got {list(self.fixed_size)}"
            )
        self._levels = stage_levels(self.encoder.out_channels, config.arch)
        if getattr(self.encoder, "_depth", _DEEPEST) < _DEEPEST and self.fixed_size is None:
            drop_unused(self.encoder, self.probe_size()[0])
        if "output_stride" in config.options:
            self._try_dilated()
        if config.arch == "dpt" and self.encoder.output_stride != _PATCH_OF_DPT:
            self._try_patches()

    def compute(self, images: Tensor, record: Record) -> Tensor:
        encoded = self.encoder(images)
        # DPT's encoder also returns prefix tokens.
        features, *tokens = encoded if isinstance(encoded, tuple) else (encoded,)
        for name, level in self._levels.items():
            record(name, features[level])
        decoded = self.decoder(features, *tokens)
        *before, classifier = _classifier(self.segmentation_head)
        for layer in before:
            decoded = layer(decoded)
        record("head", decoded)
        return classifier(decoded)

    def tap_names(self) -> list[str]:
        return [*self._levels, "head", "logits"]

    def probe_size(self) -> tuple[int, int]:
        # PAN pools the deepest feature three times more.
        side = max(128, 8 * self.encoder.output_stride if self.config.arch == "pan" else 0)
        side = -(-side // self.divisor) * self.divisor
        return self.fixed_size or (side, side)

    @property
    def title(self) -> str:
        return f"{self.config.arch} with {self.config.encoder}"

    def _try_dilated(self) -> None:
        """Raises ConfigError for decoders that rely on the strides of the encoder."""
        try:
            self.tap_info(["logits"])
        except RuntimeError as error:
            raise ConfigError(
                f"options.output_stride: the decoder of {self.config.arch} cannot use a dilated "
                f"encoder ({error}). Remove it, or use pspnet, deeplabv3 or upernet"
            ) from error

    def _try_patches(self) -> None:
        """Raises ConfigError for a transformer whose patches DPT's decoder cannot use."""
        try:
            self.tap_info(["logits"])
        except ODD_VALUES as error:
            raise ConfigError(
                f"arch 'dpt' needs an encoder with patches of {_PATCH_OF_DPT}x{_PATCH_OF_DPT}, "
                f"{self.config.encoder} has {self.encoder.output_stride}. Take e.g. encoder: "
                "tu-vit_small_patch16_224, or teach with its features: timm: NAME in `teachers:`"
            ) from error


def _create(config: ModelConfig, num_classes: int, pretrained: bool = False) -> Any:
    """The smp model, of a library without types; with ``pretrained``, timm downloads weights."""
    import segmentation_models_pytorch as smp

    _check_encoder(config.encoder)
    arguments = _arguments(smp.MODEL_ARCHITECTURES_MAPPING[config.arch], config)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return smp.create_model(
                config.arch,
                config.encoder,
                True if pretrained else None,
                classes=num_classes,
                **arguments,
            )
    except (*ODD_VALUES, MemoryError) as error:
        raise ConfigError(
            f"arch '{config.arch}' cannot be built with encoder '{config.encoder}' and options "
            f"{shortened(dict(config.options))}: {str(error).rstrip('.!')}. {_advice(config)}"
        ) from error


def bare_encoder(config: ModelConfig) -> Any:
    """An encoder of smp or timm with its weights, without a decoder.

    Raises:
        ConfigError: there is no such encoder, or it has no such weights.
        SegKDError: the weights could not be downloaded.
    """
    import segmentation_models_pytorch as smp

    _check_encoder(config.encoder)
    try:
        if from_timm(config):
            with downloading(config):
                return smp.encoders.get_encoder(config.encoder, weights="imagenet")
        encoder = smp.encoders.get_encoder(config.encoder, weights=None)
    except (*ODD_VALUES, MemoryError) as error:
        raise ConfigError(
            f"arch '{config.arch}' cannot be built with encoder '{config.encoder}': "
            f"{str(error).rstrip('.!')}. Change the encoder"
        ) from error
    if config.weights is not None:
        load_encoder_weights(encoder, config)
    return encoder


def _advice(config: ModelConfig) -> str:
    if config.arch == "dpt":
        return "dpt needs a ViT of timm, e.g. encoder: tu-vit_small_patch16_224"
    if "output_stride" in config.options or "deeplab" in config.arch or config.arch == "pan":
        return "This arch or its options dilate the encoder, which e.g. any ResNet supports"
    return "Change the encoder or the options"


def _arguments(architecture: Any, config: ModelConfig) -> dict[str, Any]:
    """The options as smp's arguments. Raises ConfigError for an unknown one."""
    known = set(inspect.signature(architecture.__init__).parameters) - _NOT_OPTIONS
    dilates = "encoder_output_stride" not in known and config.arch != "dpt"
    known |= {"encoder_options"} | ({"output_stride"} if dilates else set())
    for key in config.options:
        if key not in known:
            raise unknown_option(key, known, config)
    options = dict(config.options)
    encoder_options = options.pop("encoder_options", {})
    if encoder_options and not config.encoder.startswith("tu-"):
        raise ConfigError(
            f"options.encoder_options: '{config.encoder}' has none. Only encoders of timm have: "
            "their names begin with 'tu-'"
        )
    encoder_options = encoder_options_of(encoder_options)
    if config.arch == "dpt" and "img_size" not in encoder_options:
        encoder_options = {"dynamic_img_size": True, **encoder_options}
    return options | encoder_options


def _check_encoder(name: str) -> None:
    from segmentation_models_pytorch.encoders import get_encoder_names

    if name.startswith("tu-"):
        import timm

        known = [f"tu-{model}" for model in timm.list_models()]
        found = timm.is_model(name.removeprefix("tu-"))
    else:
        known = get_encoder_names()
        found = name in known
    if not found:
        hint = did_you_mean(name, known)
        if not hint.startswith(" Did"):
            hint = " See `segkd list models`; encoders of timm begin with 'tu-'"
        raise ConfigError(f"unknown encoder '{name}'.{hint}")


def stage_levels(out_channels: list[int], arch: str = "") -> dict[str, int]:
    """Index of the encoder feature of each stage; level 0 is the image (or full resolution)."""
    if arch == "dpt":
        return {f"stage{index + 1}": index for index in range(len(out_channels))}
    return {
        f"stage{level}": level
        for level, channels in enumerate(out_channels)
        if level > 0 and channels > 0
    }


def only_size(encoder: Any, options: Mapping[str, Any]) -> tuple[int, int] | None:
    """The only size that a transformer of timm takes, from its options or its own config."""
    chosen = options.get("encoder_options", {})
    facts = getattr(getattr(encoder, "model", None), "pretrained_cfg", None) or {}
    if chosen.get("dynamic_img_size") or not chosen.get("strict_img_size", True):
        return None
    if chosen.get("img_size") is not None:
        return image_size(chosen["img_size"])
    if facts.get("fixed_input_size") and not getattr(encoder.model, "dynamic_img_size", False):
        _, height, width = facts["input_size"]
        return height, width
    return None


def _classifier(head: Any) -> list[nn.Module]:
    """The layers of a segmentation head up to the one that returns logits."""
    layers = getattr(head, "head", None)  # DPT's head has layers before the classifier
    return [head[0]] if layers is None else list(layers)
