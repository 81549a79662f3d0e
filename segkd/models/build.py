"""Builds a network from a ModelConfig, or from a student file."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from segkd import checkpoint, registry
from segkd.config.schema import ExistHeadConfig, ModelConfig, TeacherConfig
from segkd.errors import (
    ODD_VALUES,
    CheckpointError,
    ConfigError,
    SegKDError,
    did_you_mean,
    shortened,
)
from segkd.models.class_names import match_classes
from segkd.models.module import OWN
from segkd.models.network import Network
from segkd.models.normalization import of_file, same, statistics
from segkd.models.quantization_facts import QuantizationFacts
from segkd.models.quantized import restore_input_grids
from segkd.models.student_info import StudentInfo
from segkd.models.unknown_options import unknown_option
from segkd.models.weights import load_student_file, resolve
from segkd.yaml_tree import inline

_IMPLIED = ("version",)  # options that files have and configurations need not give
_DEFAULT_ENCODERS = {
    block.model_fields["encoder"].default for block in (ModelConfig, TeacherConfig)
}


def build_network(config: ModelConfig, num_classes: int, classes: Sequence[str] = ()) -> Network:
    """The configured network, with the weights of ``config.checkpoint`` if that is given.

    Without ``arch``, the network is defined by the checkpoint; with it, the checkpoint may also be
    a state dict of another program, see ``foreign``.

    Args:
        config: the block ``student:`` or an entry of ``teachers:``.
        num_classes: number of classes of the data.
        classes: their names: outputs of a checkpoint with the same classes in another order are
            reordered. If empty, only the number of classes is checked.

    Raises:
        ConfigError: unknown names or options, with a suggestion.
        CheckpointError: the checkpoint is of another network or has other classes.
        SegKDError: encoder weights could not be downloaded.
    """
    if not config.checkpoint:
        if config.classes:
            raise ConfigError(
                "classes: names the outputs of a `checkpoint` without names, and there is none. "
                "Remove the key"
            )
        return _fresh(config, num_classes)
    try:
        payload = load_student_file(config.checkpoint)
    except checkpoint.ForeignFile:
        if not config.arch:
            raise
        network = _with_foreign_weights(config, num_classes)
        _match(network, config.classes, classes, config.checkpoint)
        return network
    saved = saved_config(payload, config.checkpoint)
    if len(payload["classes"]) != num_classes:
        raise CheckpointError(
            f"{config.checkpoint} has {len(payload['classes'])} classes "
            f"({_first(payload['classes'])}), the data has {num_classes}. Use a checkpoint that "
            "was trained on the same classes"
        )
    _check_same(config, saved, payload["classes"])
    # Whatever the encoder could be initialised with is overwritten by the checkpoint.
    changes = {"aux_head": config.aux_head, "checkpoint": config.checkpoint, "weights": None}
    network = _fresh(saved.model_copy(update=changes), num_classes)
    network.normalization = of_file(network.config, config.normalize)
    load_student(network, payload, config.checkpoint)
    if config.exist_head is not None and network.exist_head is None:
        network.add_exist_head(config.exist_head)  # begins untrained, as in other programs' files
    _match(network, payload["classes"], classes, config.checkpoint)
    return network


def network_from_file(source: str | Path) -> tuple[Network, dict[str, Any]]:
    """The network of a student file in eval mode on the CPU, and the file's payload.

    An ``.onnx`` file exported by segkd is a network as well, run by onnxruntime.

    Raises:
        CheckpointError: not a student file, or a damaged one.
        SegKDError: onnxruntime is not installed.
    """
    if str(source).lower().endswith(".onnx"):
        from segkd.models.onnx_network import OnnxNetwork

        exported = OnnxNetwork(resolve(source))
        return exported, payload_of(exported)
    payload = load_student_file(source)
    config = saved_config(payload, source)
    network = _fresh(config, len(payload["classes"]))
    network.normalization = of_file(network.config, "auto")
    load_student(network, payload, str(source))
    network.info = StudentInfo.of(payload)
    return network.eval(), payload


def payload_of(network: Network) -> dict[str, Any]:
    """The contents of a student's file besides its weights; ``exported`` is the name of an ONNX
    file, which is run as it is."""
    named = {"exported": network.title} if hasattr(network, "exported") else {}
    return {**network.info.payload, **named}


def load_student(network: Network, payload: Mapping[str, Any], where: str) -> None:
    """Loads the weights of a student's file; activations that it quantised are quantised again.

    Args:
        network: the network of these weights.
        payload: of the file.
        where: the file, for messages.

    Raises:
        CheckpointError: see ``load_weights``.
    """
    load_weights(network, payload["weights"], where)
    if payload.get("quantization"):
        facts = QuantizationFacts.model_validate(payload["quantization"])
        restore_input_grids(network, facts, where)


def load_weights(network: Network, weights: Mapping[str, Tensor], where: str) -> None:
    """Loads a student's weights; auxiliary heads, which files do not have, are kept.

    Args:
        network: the network of these weights.
        weights: tensors by name.
        where: the file, for messages.

    Raises:
        CheckpointError: lists missing and unknown tensors, or names one with NaN.
    """
    checkpoint.require_finite(weights, where)
    own = network.state_dict()
    heads = {key: value for key, value in own.items() if key.startswith("aux_heads.")}
    checkpoint.restore(network, {**weights, **heads}, where)


def _match(network: Network, given: Sequence[str], wanted: Sequence[str], where: object) -> None:
    """Reorders the outputs if both sides have class names."""
    if given and wanted:
        network.classes_match = match_classes(network, given, wanted, where)
    # From here on the order is that of the data, also in files written from this network.
    network.config = network.config.model_copy(update={"classes": []})


def _with_foreign_weights(config: ModelConfig, num_classes: int) -> Network:
    """The network with weights of another program; sets ``network.match``."""
    from segkd.models.foreign import load_foreign

    path = resolve(str(config.checkpoint))
    fresh = config.model_copy(update={"weights": None})
    network, match = load_foreign(fresh, num_classes, path, _fresh)
    network.match = match
    return network


def _fresh(config: ModelConfig, num_classes: int) -> Network:
    if config.arch == OWN:
        raise ConfigError(
            "this network is a wrapped Python module, which no configuration can build. Pass the "
            "module in Python, e.g. segkd.load_student(path, module=…)"
        )
    if config.arch in registry.models:
        network = _own(registry.models.get(config.arch), config, num_classes)
    else:
        from segkd.models import smp

        if config.arch not in registry.smp_architectures():
            hint = did_you_mean(config.arch, registry.architectures())
            raise ConfigError(f"unknown arch '{config.arch}'.{hint}")
        network = smp.SmpNetwork(config, num_classes)
    if config.exist_head:
        network.add_exist_head(config.exist_head)
    if config.aux_head:
        network.add_aux_head(config.aux_head)
    return network


def _own(kind: type[Network], config: ModelConfig, num_classes: int) -> Network:
    """One of segkd's own architectures; its keyword-only arguments are its options."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    known = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    for key in config.options:
        if key not in known:
            raise unknown_option(key, known, config, has_encoder=kind.has_encoder)
    if config.weights is not None and not kind.has_encoder:
        raise ConfigError(
            f"weights: arch '{kind.name}' has no pretrained encoder. Remove it (`weights: null`, "
            "if it is from a `base:` file), or give a whole network as `checkpoint:`"
        )
    try:
        return kind(config, num_classes, **config.options)
    except SegKDError:
        raise
    except (*ODD_VALUES, MemoryError) as error:
        raise ConfigError(
            f"arch '{kind.name}' cannot be built with options {shortened(config.options)}: "
            f"{str(error) or type(error).__name__}"
        ) from error


def saved_config(payload: Mapping[str, Any], source: object) -> ModelConfig:
    """The network in the payload of a student's file. Raises CheckpointError if it is not valid."""
    try:
        return ModelConfig.model_validate(payload["model"])
    except ValidationError as error:
        told = [f"{p['loc'][-1]}: {p['msg']}" for p in error.errors() if p["loc"]]
        problems = "; ".join(told[:3]) + (f" and {len(told) - 3} more" if len(told) > 3 else "")
        raise CheckpointError(
            f"{source} describes a network that this version of segkd does not support "
            f"({problems}). Use the version that wrote it"
        ) from error


def _check_same(config: ModelConfig, saved: ModelConfig, classes: Sequence[str]) -> None:
    """Raises CheckpointError if the configuration says other things than its checkpoint.

    Without ``arch`` it need not say anything, and stored configurations contain all defaults.
    """
    if config.classes and config.classes != list(classes):
        raise CheckpointError(
            f"classes: {config.checkpoint} names its classes itself ({_first(classes)}), and the "
            f"configuration has {_first(config.classes)}. Remove the key"
        )
    if config.arch:
        _require("arch", saved.arch, config.arch, config)
    smp = saved.arch not in registry.models
    if (smp or registry.models.get(saved.arch).chooses_encoder) and (
        config.arch or config.encoder not in _DEFAULT_ENCODERS
    ):
        _require("encoder", saved.encoder, config.encoder, config)
    if config.arch or config.options:
        # Options that the configuration does not have are the file's if they need not be given.
        optional = _IMPLIED if config.arch else saved.options
        theirs = {
            k: v for k, v in saved.options.items() if k in config.options or k not in optional
        }
        _require("options", theirs, config.options, config)
    if config.arch and config.normalize != "auto":
        agree = same(statistics(config.normalize), statistics(saved.normalize))
        mine = saved.normalize if agree else config.normalize
        _require("normalize", saved.normalize, mine, config)
    if config.exist_head is not None and saved.exist_head is not None:
        _require("exist_head", saved.exist_head, config.exist_head, config)


def _require(key: str, theirs: object, mine: object, config: ModelConfig) -> None:
    """Raises CheckpointError if the value of a key differs."""
    if mine == theirs:
        return
    if isinstance(theirs, ExistHeadConfig) and isinstance(mine, ExistHeadConfig):
        theirs, mine = (inline(one.model_dump(exclude_none=True)) for one in (theirs, mine))
    own = f"{key} {theirs!r}" if theirs else f"no {key}"
    set_it = f"Set `{key}: {theirs}`" if theirs else f"Remove `{key}`"
    rest = ", or remove `arch` to take all from the file" if config.arch and theirs else ""
    raise CheckpointError(
        f"{config.checkpoint} is a network with {own}, the configuration has {mine!r}. "
        f"{set_it}{rest}"
    )


def _first(classes: Sequence[str]) -> str:
    return ", ".join(map(str, classes[:3])) + (" …" if len(classes) > 3 else "")
