"""Backbones of ``timm`` as teachers of features, by name, hub id, or folder."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segkd.checkpoint import require_finite
from segkd.config.schema import ModelConfig, Normalize
from segkd.errors import (
    CheckpointError,
    ConfigError,
    SegKDError,
    did_you_mean,
    shortened,
)
from segkd.models.encoder_weights import is_file
from segkd.models.features import LAST, FeatureNetwork, chosen_blocks, stage_names
from segkd.models.normalization import Statistics, of_model
from segkd.ops.mode import eval_mode

ARCH = "timm"  # `arch` in messages; not one of `segkd list models`
_HEADS = {"head", "fc", "classifier", "norm_head", "fc_norm"}  # partly there without classes
_HUB, _FOLDER = "hf-hub:", "local-dir:"
# How a transformer of timm is told to take images of any size; the first that its class knows.
_ANY_SIZE: tuple[dict[str, Any], ...] = (
    {"dynamic_img_size": True},
    {"strict_img_size": False},
    {},
)


class TimmBackbone(FeatureNetwork):
    """A backbone of timm with its pretrained weights.

    Of a plain vision transformer, stages are the patch tokens of some blocks after the final
    normalisation, without class and register tokens, as ``forward_intermediates(norm=True)``
    returns them; position embeddings are interpolated to the size of the image. Of a network with
    several strides, they are its own stages: ``stage k`` at stride 2^k.

    Args:
        name: of timm, ``NAME.TAG``; ``hf-hub:ID``; or a folder with ``config.json`` and weights.
        weights: a file instead of the weights of that name; None: those.
        normalize: of the configuration; other statistics than the weights' are a warning.
        options: ``{blocks: …}``, see ``chosen_blocks``.

    Raises:
        ConfigError: timm has no such model, or one without weights or without stages.
        CheckpointError: the file cannot be read or does not fit.
        SegKDError: the weights could not be downloaded.
    """

    def __init__(
        self,
        name: str,
        weights: str | None = None,
        normalize: Normalize = "auto",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        model = _create(_source(name), weights)
        facts: dict[str, Any] = dict(model.pretrained_cfg)
        strides = _strides(model, name)
        names, indices = _stages(strides, options or {})
        used = of_model(_statistics(facts), normalize)
        config = ModelConfig(arch=ARCH, normalize=used.key)
        super().__init__(config, max(strides), names)
        self.normalization = used
        self.name_of_model, self._licence = name, str(facts.get("license") or "")
        self.model, self._indices = model, indices
        self._plain = len(set(strides)) == 1
        self.fixed_size = _fixed_size(model, facts, max(strides))

    def features(self, images: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.model.forward_intermediates(
            images,
            indices=self._indices,
            norm=self._plain,
            intermediates_only=True,
            output_fmt="NCHW",
        )
        return maps

    @property
    def licence(self) -> str:
        return self._licence

    @property
    def title(self) -> str:
        return self.name_of_model


def _source(name: str) -> str:
    """The name as ``timm.create_model`` takes it. Raises ConfigError if timm has no such model."""
    import timm

    if name.startswith((_HUB, _FOLDER)):
        return name
    if Path(name).expanduser().is_dir():
        return f"{_FOLDER}{Path(name).expanduser()}"
    base = name.partition(".")[0]
    if not timm.is_model(base):
        hint = did_you_mean(base, timm.list_models())
        if not hint.startswith(" Did"):
            hint = (
                f" A model of the hub is written {_HUB}ID; there is no folder of this name either"
            )
        raise ConfigError(f"timm: unknown model '{name}'.{hint}")
    if "." in name and name not in timm.list_pretrained(f"{base}.*"):
        known = [one.partition(".")[2] for one in timm.list_pretrained(f"{base}.*")]
        raise ConfigError(
            f"timm: '{base}' has no weights '{name.partition('.')[2]}'. Its weights: "
            f"{', '.join(known) or 'none'}"
        )
    return name


def _create(source: str, weights: str | None) -> Any:
    """The model with its weights; the first arguments for any image size that it knows."""
    import timm

    file = None if weights is None else _file(weights)
    if file is None and not source.startswith((_HUB, _FOLDER)):
        base = source.partition(".")[0]
        if not timm.models.is_model_pretrained(source):
            raise ConfigError(f"timm: '{base}' has no pretrained weights. Give a file as `weights`")
    for arguments in _ANY_SIZE:
        try:
            with _listening() as told:
                model = timm.create_model(
                    source,
                    pretrained=True,
                    pretrained_cfg_overlay=None if file is None else {"file": str(file)},
                    num_classes=0,
                    **arguments,
                )
        except TypeError as error:
            if "unexpected keyword" in str(error) and arguments:
                continue
            raise _unread(source, file, error) from error
        except Exception as error:  # of the hub, its HTTP client, the system, or a foreign file
            raise _unread(source, file, error) from error
        _check_fit(model, told, file or source)
        require_finite(model.state_dict(), f"timm: {file or source}")
        return model
    raise AssertionError("the last arguments are none")


@contextmanager
def _listening() -> Iterator[list[str]]:
    """What timm logs about tensors that do not fit, which it passes over without a classifier."""
    told: list[str] = []
    logger = logging.getLogger("timm.models._builder")
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield told
    finally:
        logger.setLevel(level)
        logger.propagate = propagate
        logger.removeHandler(handler)


def _check_fit(model: nn.Module, told: Sequence[str], where: object) -> None:
    """Raises CheckpointError if weights are missing, or the model's parts have others."""
    own = {name for name, _ in model.named_parameters()}
    parts = {name.partition(".")[0] for name in own} - _HEADS
    for text in told:
        kind, _, listed = text.partition(" keys (")
        keys = listed.partition(")")[0].split(", ")
        if kind == "Unexpected":  # others are of a classifier, or of the training
            keys = [key for key in keys if key.partition(".")[0] in parts]
        else:
            keys = [key for key in keys if key in own]  # buffers may be computed
        if kind in ("Missing", "Unexpected") and keys:
            state = "misses" if kind == "Missing" else "has others than"
            raise CheckpointError(
                f"timm: {where} {state} tensors of this model: {len(keys)}, e.g. {keys[0]}. Give "
                "weights that were saved from it"
            )


def _file(weights: str) -> Path:
    path = Path(weights).expanduser()
    if not path.is_file():
        hint = "" if is_file(weights) else ". Weights by name are a part of it: `timm: NAME.TAG`"
        raise CheckpointError(f"weights: there is no file {path}{hint}")
    return path


def _unread(source: str, file: Path | None, error: Exception) -> SegKDError:
    cause = error.__cause__ or error
    reason = f"{type(cause).__name__}: {shortened(str(cause).strip().partition(chr(10))[0])}"
    here = file or (source.startswith(_FOLDER) and source.removeprefix(_FOLDER))
    if here:
        return CheckpointError(
            f"timm: {here or source} cannot be read as weights of this model "
            f"({reason}). Give weights that were saved from it"
        )
    return SegKDError(
        f"timm: the weights of {source} could not be downloaded ({reason}). Check the connection, "
        "or give a local file as `weights`, or a folder as `timm`"
    )


def _strides(model: nn.Module, name: str) -> list[int]:
    """The stride of each block or stage that ``forward_intermediates`` can return."""
    facts = getattr(model, "feature_info", None)
    if not hasattr(model, "forward_intermediates") or not facts:
        raise ConfigError(
            f"timm: {name} has no stages that timm can return (no forward_intermediates). Take "
            "another backbone"
        )
    return [int(stage["reduction"]) for stage in facts]


def _stages(strides: Sequence[int], options: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """Names of the taps, and their indices for ``forward_intermediates``."""
    if len(set(strides)) == 1:
        blocks = chosen_blocks(len(strides), options, "timm")
        return stage_names(len(blocks)), blocks
    if options:
        raise ConfigError(
            f"timm.options.{next(iter(options))}: this backbone has stages of several strides, "
            "which are all tapped. Remove the key"
        )
    levels = [round(math.log2(stride)) for stride in strides]
    if levels == sorted(set(levels)) and levels[0] >= 1 and levels[-1] <= LAST:
        return [f"stage{level}" for level in levels], list(range(len(strides)))
    taken = min(LAST, len(strides))
    return stage_names(taken), list(range(len(strides) - taken, len(strides)))


def _statistics(facts: Mapping[str, Any]) -> Statistics:
    return [float(v) for v in facts["mean"]], [float(v) for v in facts["std"]]


def _fixed_size(model: Any, facts: Mapping[str, Any], patch: int) -> tuple[int, int] | None:
    """The only (H, W) that the model takes, or None.

    Which of timm's models take others is not told by their facts, so one is tried.
    """
    if not facts.get("fixed_input_size"):
        return None
    _, height, width = facts["input_size"]
    try:
        with eval_mode(model), torch.no_grad():
            model.forward_intermediates(
                torch.zeros(1, 3, 3 * patch, 2 * patch), intermediates_only=True
            )
    except Exception:  # assertions about sizes, shapes that do not match, and the like
        return height, width
    return None
