"""Segmentation models of the Hugging Face library ``transformers``: networks by id or folder.

Per-pixel models (SegFormer, UperNet, DPT, BEiT, Data2Vec, MobileViT, MobileNetV2) return logits.
Mask models (MaskFormer, Mask2Former, OneFormer, EoMT) return queries, each with class scores and a
mask: the score of class k at a pixel is Σ_q softmax(class_q)_k · sigmoid(mask_q), as in the
library's own post-processing (Cheng et al., arXiv 2107.06278, section 3.4). Normalised over the
classes, these are probabilities, and the network returns their logarithms.

Images are normalised as the model's processor file says. They are not resized: the library's
pipelines resize every image to the size in that file, networks here run at the size of the data.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from segkd.config.schema import ModelConfig, Normalize
from segkd.errors import CheckpointError
from segkd.models.class_map import FLOOR, safe_log
from segkd.models.features import as_map
from segkd.models.hf_source import Source, kinds, quietly, statistics, told
from segkd.models.network import Network
from segkd.models.normalization import of_model
from segkd.models.student_info import StudentInfo
from segkd.models.taps import Record

ARCH = "hf"  # `arch` in messages; not one of `segkd list models`
_STAGES = ("stage2", "stage3", "stage4", "stage5")
_STRIDE = 32  # of hierarchical encoders: other sizes give maps that are not aligned with the image
_FIXED = ("dpt", "data2vec-vision", "eomt", "eomt_dinov3")  # fail at other sizes than their own
_TASK = "the task is semantic"  # what OneFormer is asked


class HuggingFace(Network):
    """A segmentation model of ``transformers``, with its weights.

    Stages are the encoder's feature maps; of plain vision transformers, the patch tokens after each
    quarter of the layers. ``head`` is the input of the classifier; of mask models the per-pixel
    embedding that masks are made of.

    Args:
        source: the model.
        normalize: of the configuration; another one than the processor's is a warning.
        classes: other names for its classes, in its order; None: its own.

    Attributes:
        source: the model.

    Raises:
        CheckpointError: the weights cannot be read, or are incomplete.
    """

    any_size: ClassVar[str] = "take another model, such as a SegFormer"
    _task: Tensor | None
    _order: Tensor | None

    def __init__(
        self,
        source: Source,
        normalize: Normalize = "auto",
        classes: Sequence[str] | None = None,
    ) -> None:
        used = of_model(statistics(source.processor, source.model), normalize)
        config = ModelConfig(arch=ARCH, normalize=used.key)
        super().__init__(config, len(source.classes))
        self.normalization = used
        self.source, self.info = source, StudentInfo.of({"classes": classes or source.classes})
        self.model = _with_weights(source)
        self.divisor, self.fixed_size = _sizes(source.config)
        self._readers = _readers(self.model, source.config)
        self._flip = bool(source.processor.get("do_flip_channel_order", False))
        asks = self._kind == "oneformer"
        task = _task_tokens(source.place, source.config.task_seq_len) if asks else None
        self.register_buffer("_task", task, persistent=False)
        self.register_buffer("_order", None, persistent=False)

    def compute(self, images: Tensor, record: Record) -> Tensor:
        size = (images.shape[-2], images.shape[-1])
        inputs: dict[str, Any] = {"pixel_values": images.flip(1) if self._flip else images}
        if self._kind == "beit":
            inputs["interpolate_pos_encoding"] = True
        if self._task is not None:
            inputs["task_inputs"] = self._task.expand(len(images), -1)
        with self._recording(record, size):
            output = self.model(**inputs)
        scores = class_scores(output)
        return scores if self._order is None else scores[:, self._order]

    @property
    def licence(self) -> str:
        return self.source.licence

    @property
    def kind(self) -> Literal["logits", "log_prob"]:
        return "log_prob" if self._kind in kinds()[1] else "logits"

    def reorder_classes(self, order: list[int]) -> None:
        """Reorders the outputs: position i becomes the model's class ``order[i]``."""
        self._order = torch.tensor(order, device=self.device)

    def tap_names(self) -> list[str]:
        return [*(name for reader in self._readers for name in reader.names), "logits"]

    def tap_root(self, path: str) -> str:
        return "model"

    @property
    def title(self) -> str:
        return self.source.model

    @property
    def _kind(self) -> str:
        return str(self.source.config.model_type)

    @contextmanager
    def _recording(self, record: Record, size: tuple[int, int]) -> Iterator[None]:
        def take(reader: _Reader, _: nn.Module, __: Any, output: Any) -> None:
            values = reader.read(output, size)
            for name, value in zip(reader.names, values, strict=True):
                record(name, value)

        with ExitStack() as hooks:
            for reader in self._readers:
                module = self.model.get_submodule(reader.path)
                handle = module.register_forward_hook(partial(take, reader))
                hooks.callback(handle.remove)
            yield


@dataclass(frozen=True)
class _Reader:
    """How some taps are read from the output of a submodule.

    Attributes:
        path: of the submodule.
        names: of the taps.
        read: from the submodule's output and the image's (H, W), a map (B, C, h, w) for each.
    """

    path: str
    names: tuple[str, ...]
    read: Callable[[Any, tuple[int, int]], list[Tensor]]


def class_scores(output: Any) -> Tensor:
    """Logits (B, K, h, w) of per-pixel models, log-probabilities of mask models.

    Args:
        output: of the model: has ``logits``, or ``class_queries_logits`` (B, Q, K + 1) and
            ``masks_queries_logits`` (B, Q, h, w).
    """
    logits = getattr(output, "logits", None)
    if logits is not None:
        return logits
    classes = output.class_queries_logits.float().softmax(-1)[..., :-1]  # the last: no object
    masks = output.masks_queries_logits.float().sigmoid()
    scores = torch.einsum("bqk,bqhw->bkhw", classes, masks)
    return safe_log(scores / scores.sum(1, keepdim=True).clamp_min(FLOOR))


def gives_log_prob(source: Source) -> bool:
    """Whether a model is a mask model, which has probabilities of classes but no logits."""
    return str(source.config.model_type) in kinds()[1]


def fixed_size(source: Source) -> tuple[int, int] | None:
    """The only (height, width) that a model takes; None: any multiple of its stride."""
    return _sizes(source.config)[1]


def _with_weights(source: Source) -> nn.Module:
    import transformers

    masks = source.config.model_type in kinds()[1]
    task = "UniversalSegmentation" if masks else "SemanticSegmentation"
    auto_class = getattr(transformers, f"AutoModelFor{task}")
    with told(source.place), quietly():
        model, facts = auto_class.from_pretrained(
            source.place, dtype=torch.float32, output_loading_info=True
        )
    if facts["missing_keys"]:
        missing = sorted(facts["missing_keys"])
        raise CheckpointError(
            f"hf: {source.model} has no weights for {len(missing)} tensors of a "
            f"{type(model).__name__}, e.g. {missing[0]}. Use a model that was fine-tuned for "
            "semantic segmentation"
        )
    return model


def _task_tokens(model: str, length: int) -> Tensor:
    """OneFormer's question as token ids (1, length)."""
    from transformers import AutoTokenizer

    with told(model):
        tokens = AutoTokenizer.from_pretrained(model)(
            [_TASK], padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
    return tokens["input_ids"] * tokens["attention_mask"]


def _sizes(config: Any) -> tuple[int, tuple[int, int] | None]:
    """The divisor of image sizes, and the only size that a model takes, or None."""
    patch: int = getattr(config, "patch_size", _STRIDE)
    if config.model_type in _FIXED:
        size: int | list[int] = config.image_size
        height, width = [size, size] if isinstance(size, int) else size
        return patch, (height, width)
    return patch if config.model_type == "beit" else _STRIDE, None


def _readers(model: nn.Module, config: Any) -> list[_Reader]:
    """How the stages of the encoder and the embedding of pixels are read."""
    found = []
    for path, module in model.named_modules():
        if hasattr(module, "out_features") and hasattr(module, "channels"):
            found.append(_Reader(path, _last_stages(len(module.out_features)), _feature_maps))
            break
    else:
        found += _layers(model, config)
    for path, _ in model.named_modules():
        if path.endswith("pixel_level_module.decoder") or path == "upscale_block":
            found.append(_Reader(path, ("head",), _pixel_embedding))
    return found


def _last_stages(number: int) -> tuple[str, ...]:
    return _STAGES[-min(number, len(_STAGES)) :]


def _layers(model: nn.Module, config: Any) -> list[_Reader]:
    """Stages of an encoder that is a list of layers: all of few, or quarter points of many."""
    number = getattr(config, "num_hidden_layers", None)
    patch = getattr(config, "patch_size", 0)
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == number:
            names = _last_stages(number)
            chosen = [round((index + 1) * number / len(names)) - 1 for index in range(len(names))]
            return [
                _Reader(f"{path}.{index}", (name,), partial(_layer_map, patch=patch))
                for index, name in zip(chosen, names, strict=True)
            ]
    return []


def _feature_maps(output: Any, _: tuple[int, int]) -> list[Tensor]:
    return list(output.feature_maps[-len(_STAGES) :])


def _pixel_embedding(output: Any, _: tuple[int, int]) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    features = getattr(output, "mask_features", None)
    return [output.last_hidden_state if features is None else features]


def _layer_map(output: Any, size: tuple[int, int], patch: int) -> list[Tensor]:
    """The output of a layer as a map: class, register and query tokens come before the patches."""
    tokens = output[0] if isinstance(output, tuple) else output
    return [tokens if tokens.ndim == 4 else as_map(tokens, size, patch, "a layer of the network")]
