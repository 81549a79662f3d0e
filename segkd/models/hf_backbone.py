"""Backbones of ``transformers`` as teachers of features: DINOv2, DINOv3, SigLIP, ViT, Swin, …

Of a plain vision transformer, stages are the patch tokens of some layers after the final
normalisation, and the last is the library's ``last_hidden_state`` without class and register
tokens; position embeddings are interpolated to the size of the image. Hierarchical networks return
the maps of the library's own backbone classes.
"""

import inspect
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from segkd.config.schema import ModelConfig, Normalize
from segkd.errors import CheckpointError, SegKDError, shortened
from segkd.models.features import FeatureNetwork, as_map, chosen_blocks, stage_names
from segkd.models.hf_source import Source, backbone_classes, quietly, statistics, told
from segkd.models.normalization import of_model
from segkd.ops.mode import eval_mode

ARCH = "hf"  # `arch` in messages; not one of `segkd list models`
_STRIDE, _LAST = 32, 4  # of hierarchical networks, which have four stages
_NORMS = ("layernorm", "norm", "post_layernorm")
_NO_NORM = ("clip_vision_model",)  # normalises the class token only
_UNUSED = ("pooler.", "head.", "hidden_states_norms.")  # of pooled outputs; a plain normalisation
_POSITIONS = "interpolate_pos_encoding"
_ANY_SIZE = ("dinov2", "dinov2_with_registers", "dinov3_vit", "pixio")  # without being asked


def hf_backbone(
    source: Source, normalize: Normalize = "auto", options: Mapping[str, Any] | None = None
) -> FeatureNetwork:
    """A backbone of ``transformers`` with its weights.

    Args:
        source: the model.
        normalize: of the configuration; another one than the processor's is a warning.
        options: ``{blocks: …}`` of a plain vision transformer, see ``chosen_blocks``.

    Raises:
        CheckpointError: the weights cannot be read, or are incomplete.
        ConfigError: options that the model does not have.
        SegKDError: the model returns no maps.
    """
    options = options or {}
    config = source.config
    if source.trusted:
        return OwnCodeBackbone(source, normalize, options)
    plain = hasattr(config, "num_hidden_layers") and hasattr(config, "patch_size")
    if plain and not hasattr(config, "depths"):
        return TokenBackbone(source, normalize, options)
    return MapBackbone(source, normalize, options)


class _HuggingFaceBackbone(FeatureNetwork):
    def __init__(
        self,
        source: Source,
        normalize: Normalize,
        model: nn.Module,
        patch: int,
        number: int,
    ) -> None:
        used = of_model(statistics(source.processor, source.model), normalize)
        config = ModelConfig(arch=ARCH, normalize=used.key)
        super().__init__(config, patch, stage_names(number))
        self.normalization = used
        self.source, self.model = source, model
        self._flip = bool(source.processor.get("do_flip_channel_order", False))

    def features(self, images: Tensor) -> list[Tensor]:
        return self.maps(images.flip(1) if self._flip else images)

    def maps(self, images: Tensor) -> list[Tensor]:
        """A map per stage; images as the model takes them."""
        raise NotImplementedError

    @property
    def licence(self) -> str:
        return self.source.licence

    @property
    def title(self) -> str:
        return self.source.model


class TokenBackbone(_HuggingFaceBackbone):
    """A plain vision transformer; see ``hf_backbone``."""

    def __init__(self, source: Source, normalize: Normalize, options: Mapping[str, Any]) -> None:
        model = _loaded(source, "AutoModel", config=source.config)
        path, layers = _layers(model, source)
        blocks = chosen_blocks(len(layers), options, source.model)
        patch = _patch(source.config, model, source.model)
        super().__init__(source, normalize, model, patch, len(blocks))
        self._blocks = [f"{path}.{index}" for index in blocks]
        self._ends = blocks[-1] == len(layers) - 1
        kind = source.config.model_type
        names = () if kind in _NO_NORM else _NORMS
        self._norm = next((one for one in names if hasattr(model, one)), "")
        self._arguments: dict[str, Any] = {}
        if _POSITIONS in inspect.signature(model.forward).parameters:
            self._arguments[_POSITIONS] = True
        elif kind not in _ANY_SIZE:
            size = source.config.image_size
            height, width = [size, size] if isinstance(size, int) else size
            self.fixed_size = (height, width)

    def maps(self, images: Tensor) -> list[Tensor]:
        found: dict[str, Tensor] = {}

        def take(path: str, _: nn.Module, __: Any, output: Any) -> None:
            found[path] = output[0] if isinstance(output, tuple) else output

        with ExitStack() as hooks:
            for path in self._blocks:
                layer = self.model.get_submodule(path)
                hooks.callback(layer.register_forward_hook(partial(take, path)).remove)
            output = self.model(pixel_values=images, **self._arguments)
        norm = self.model.get_submodule(self._norm) if self._norm else nn.Identity()
        tokens = [norm(found[path]) for path in self._blocks]
        if self._ends:
            tokens[-1] = output.last_hidden_state
        size = images.shape[-2:]
        return [
            one if one.ndim == 4 else as_map(one, size, self.patch, self.title) for one in tokens
        ]

    def hooked_paths(self, taps: Any) -> set[str]:
        return super().hooked_paths(taps) | {f"model.{path}" for path in self._blocks}


class MapBackbone(_HuggingFaceBackbone):
    """A hierarchical network; see ``hf_backbone``."""

    def __init__(self, source: Source, normalize: Normalize, options: Mapping[str, Any]) -> None:
        name = backbone_classes().get(source.config.model_type)
        if name is None:
            raise CheckpointError(
                f"hf: {source.model} is a '{source.config.model_type}' without classes of pixels, "
                "and transformers has no class that returns its feature maps. Take one that was "
                "fine-tuned for semantic segmentation, or a backbone of timm: {timm: NAME}"
            )
        _no_options(options, source.model)
        model = _loaded(source, name, out_indices=[-number for number in range(_LAST, 0, -1)])
        super().__init__(source, normalize, model, _STRIDE, _LAST)
        size = getattr(source.config, "image_size", None)
        if size is not None and not _takes_other_sizes(model):
            height, width = [size, size] if isinstance(size, int) else size
            self.fixed_size = (height, width)

    def maps(self, images: Tensor) -> list[Tensor]:
        return list(self.model(pixel_values=images).feature_maps)


class OwnCodeBackbone(_HuggingFaceBackbone):
    """A model that comes with Python code of its authors, such as RADIO: its last map alone."""

    def __init__(self, source: Source, normalize: Normalize, options: Mapping[str, Any]) -> None:
        _no_options(options, source.model)
        model = _loaded(source, "AutoModel", trust_remote_code=True)
        patch = _patch(source.config, model, source.model)
        super().__init__(source, normalize, model, patch, 1)

    def maps(self, images: Tensor) -> list[Tensor]:
        output = self.model(images)
        for key in ("features", "last_hidden_state"):
            output = getattr(output, key, output)
        if isinstance(output, tuple | list):  # pooled values go first
            output = next((one for one in reversed(output) if one.ndim > 2), None)
        if not isinstance(output, Tensor) or output.ndim not in (3, 4):
            raise SegKDError(
                f"{self.title} returns neither `features` nor `last_hidden_state` of shape (B, T, "
                "C) or (B, C, h, w). Wrap the model in Python: segkd.models.module.wrap"
            )
        if output.ndim == 4:
            return [output]
        return [as_map(output, images.shape[-2:], self.patch, self.title)]


def _loaded(source: Source, name: str, **arguments: Any) -> Any:
    """The model of a class of the library, with all weights that its features need."""
    import transformers

    with told(source.place), quietly():
        model, facts = getattr(transformers, name).from_pretrained(
            source.place, dtype=torch.float32, output_loading_info=True, **arguments
        )
    missing = sorted(key for key in facts["missing_keys"] if not key.startswith(_UNUSED))
    if missing:
        raise CheckpointError(
            f"hf: {source.model} has no weights for {len(missing)} tensors of a "
            f"{type(model).__name__}, e.g. {missing[0]}. Use an undamaged copy of it"
        )
    return model.eval()


def _layers(model: nn.Module, source: Source) -> tuple[str, nn.ModuleList]:
    number = source.config.num_hidden_layers
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == number:
            return path, module
    raise SegKDError(
        f"hf: {source.model}, a {type(model).__name__}, has no list of {number} layers, so its "
        "features cannot be tapped. Take another backbone"
    )


def _patch(config: Any, model: Any, name: str) -> int:
    """Pixels of a patch's side."""
    found = getattr(config, "patch_size", None) or getattr(model, "patch_size", None)
    sides = set(found) if isinstance(found, list | tuple) else {found}
    if len(sides) != 1 or not isinstance(found, int | list | tuple) or None in sides:
        raise SegKDError(
            f"hf: {name} has a patch_size of {shortened(found)}, expected a number, or two equal "
            "ones: its tokens cannot be laid out as a map"
        )
    return int(next(iter(sides)) or 0)


def _no_options(options: Mapping[str, Any], name: str) -> None:
    for key in options:
        raise SegKDError(f"hf: {name} has no options; it has {key}. Remove the key")


def _takes_other_sizes(model: nn.Module) -> bool:
    """Whether a backbone can be called with images that are not of its own size; it is tried."""
    try:
        with eval_mode(model), torch.no_grad():
            model(pixel_values=torch.zeros(1, 3, 3 * _STRIDE, 5 * _STRIDE))
    except Exception:  # shapes that do not match, and the like
        return False
    return True
