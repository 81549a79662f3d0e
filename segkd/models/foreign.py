"""Loads weights files of other programs: tensors are renamed and must all fit."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segkd.archive import read_archive, refuse_other_kinds
from segkd.checkpoint import adopt, differences, is_counter, require_finite
from segkd.config.schema import ModelConfig
from segkd.errors import CheckpointError
from segkd.models import erfnet_maps, espnet_maps
from segkd.models.key_maps import PSPNET_OF_CIRKD, Layout, State, layout_of
from segkd.models.network import Network
from segkd.models.normalization import Normalization, as_key, same, shown, statistics
from segkd.models.weights import table_of
from segkd.models.wrapped import as_smp_loads, chosen, without_prefixes

_log = logging.getLogger(__name__)
_STUDENT = "architecture."  # of mmrazor, which also stores the teacher
_SHOWN = 8  # keys of each list in a message

# Options for a decoder's width, and the weight with that many rows.
_WIDTHS = {
    "deeplabv3": {"decoder_channels": "decoder.conv.weight"},
    "segformer": {"decoder_segmentation_channels": "decoder.fuse_stage.0.weight"},
    "fcn": {"channels": "decoder.0.conv.weight"},
    "mmseg_pspnet": {
        "channels": "decoder.bottleneck.conv.weight",
        "pool_channels": "decoder.psp_modules.0.1.conv.weight",
    },
    "mmseg_deeplabv3": {"channels": "decoder.bottleneck.conv.weight"},
    "mmseg_deeplabv3plus": {"channels": "decoder.bottleneck.pointwise_conv.conv.weight"},
    "mmseg_segformer": {"channels": "decoder.fusion_conv.conv.weight"},
    "espnet": {"width": "decoder.score2.weight"},
    "espnetv2": {"projection": "decoder.pyramids.0.project.0.weight"},
}
# Names that only one architecture has, for messages when another one is configured. UPerNet, which
# is not supported, pools like PSPNet.
_ARCH_MARKS = (
    ("erfnet", "encoder.stage2.1.branch.7."),
    ("", "decoder.fpn_convs."),
    ("espnetv2", "decoder.pyramids."),
    ("espnet", "decoder.score3."),
    ("mmseg_deeplabv3plus", "decoder.sep_bottleneck."),
    ("mmseg_deeplabv3", "decoder.image_pool."),
    ("mmseg_pspnet", "decoder.psp_modules."),
    ("mmseg_segformer", "decoder.fusion_conv."),
    ("segformer", "decoder.mlp_stage."),
    ("fcn", "decoder.0.conv."),
    ("deeplabv3plus", "decoder.aspp.0."),
    ("deeplabv3", "decoder.aspp.convs."),
)


@dataclass(frozen=True)
class Match:
    """How the tensors of a file were matched to a network.

    Attributes:
        file: path of the file.
        layout: the program whose names it has.
        matched: number of loaded tensors.
        left: unused keys, e.g. of auxiliary heads.
        changes: lines of text about configuration taken from the file.
    """

    file: str
    layout: str
    matched: int
    left: tuple[str, ...]
    changes: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{self.file}: {self.layout} layout, {self.matched} tensors matched"
        if self.left:
            heads = dict.fromkeys(key.partition(".")[0] for key in self.left)
            text += f", {len(self.left)} unused ({', '.join(heads)})"
        return text + "".join(f"; {change}" for change in self.changes)


def load_foreign(
    config: ModelConfig,
    num_classes: int,
    path: Path,
    build: Callable[[ModelConfig, int], Network],
) -> tuple[Network, Match]:
    """The configured network with all its weights from a file of another program.

    An encoder ``resnet…`` is replaced by timm's of the same depth and stem if the file's ResNet is
    dilated like timm's. The decoder's width, and the size of an ESPNet, are taken from the file
    unless ``options`` give them. Networks trained with BGR images or their own statistics (CIRKD,
    ESPNet) get the same input here, unless ``normalize`` gives other statistics than theirs. A last
    class that is void is dropped if the data has one class less.

    Args:
        config: with ``arch``, and the name of the ``encoder`` in smp.
        num_classes: number of classes of the data.
        path: a state dict, ``.pt``, ``.pth`` or ``.safetensors``.
        build: creates the network of a configuration, without weights.

    Raises:
        CheckpointError: the file is unreadable, contains pickled code, or does not fit completely;
            lists tensors that are missing, unknown or of another shape.
    """
    state, beside, choice = _opened(path, table_of(config.checkpoint or ""))
    layout = layout_of(state)
    found, left = layout.renamed(state)
    left += beside
    _check_arch(config, layout, found, path)
    config, changes = _fitted(config, layout, found, path)
    found, config = _as_fed(found, config, layout, changes)
    found = _without_void(found, num_classes, layout, changes)
    _check_classes(found, num_classes, layout, path)
    network = build(config, num_classes)
    if config.encoder.startswith("tu-") and layout.name != "plain":
        found = {re.sub(r"^encoder\.", "encoder.model.", key): v for key, v in found.items()}
    if layout.name == "plain":
        found = as_smp_loads(found, network.state_dict().keys())
    changes += [choice] if choice else []
    fitting = adopt(network, found)
    left += [key for key in found if key not in fitting]  # of layers that nothing reads
    matched = _load(network, fitting, f"{path} ({layout.name} layout)")
    network.normalization = _stated(network, layout)
    return network, Match(str(path), layout.name, matched, tuple(left), tuple(changes))


def read_state(path: Path) -> State:
    """The tensors of a weights file by name, without prefixes of wrappers.

    Raises:
        CheckpointError: unreadable, contains pickled code (which is not executed), or no tensors.
    """
    return _opened(path, "")[0]


def _opened(path: Path, key: str) -> tuple[State, list[str], str]:
    """The state of ``read_state``, unused keys, and a line about the chosen table."""
    content, choice, beside = chosen(_read(path), key, path)
    state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise CheckpointError(
            f"{path} has no tensors by name, only {', '.join(map(str, list(content)[:5]))}. Give a "
            "state dict: torch.save(network.state_dict(), FILE)"
        )
    if any(key.startswith(_STUDENT) for key in state):
        state = {k.removeprefix(_STUDENT): v for k, v in state.items() if k.startswith(_STUDENT)}
    state, left = without_prefixes(state)
    left = beside + left
    halves = (torch.float16, torch.bfloat16)
    return {key: v.float() if v.dtype in halves else v for key, v in state.items()}, left, choice


def _read(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix.lower() == ".safetensors":
            refuse_other_kinds(path)
            return load_file(path)
        content = read_archive(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {type(content).__name__}, expected tensors by name")
    return content


def _check_arch(config: ModelConfig, layout: Layout, found: State, path: Path) -> None:
    """Raises CheckpointError if the file is of a known architecture other than configured."""
    named = (a for a, mark in _ARCH_MARKS if any(key.startswith(mark) for key in found))
    arch = next(named, "")
    if layout.name != "plain" and arch not in ("", config.arch):
        raise CheckpointError(
            f"{path} has the {layout.name} layout and fits arch '{arch}', not '{config.arch}', "
            f"which has another decoder. Set `arch: {arch}`"
        )


def _fitted(
    config: ModelConfig, layout: Layout, found: State, path: Path
) -> tuple[ModelConfig, list[str]]:
    """The configuration completed from the file, and a line about each change."""
    changes, options = [], dict(config.options)
    encoder = config.encoder
    if layout.resnet and re.fullmatch(r"resnet\d+", encoder):
        encoder = f"tu-{encoder}{_stem(found)}"
        _check_encoder(encoder, config.encoder, path)
        changes.append(f"encoder {config.encoder} is timm's here: {encoder}")
    for option, key in _WIDTHS.get(config.arch, {}).items():
        if option not in options and key in found and layout.name != "plain":
            options[option] = len(found[key])
    if layout.void:  # an ESPNet, which is defined by its tensors
        options = espnet_maps.options(config.arch, found) | options
    if config.arch == "erfnet":
        options = erfnet_maps.options(found) | options
        if config.exist_head is None and (head := erfnet_maps.exist_head(found)):
            config = config.model_copy(update={"exist_head": head})
            changes.append("exist_head: SCNN's, for images of 208x976")
    if layout is PSPNET_OF_CIRKD:
        options.setdefault("align_corners", True)
    return config.model_copy(update={"encoder": encoder, "options": options}), changes


def _as_fed(
    found: State, config: ModelConfig, layout: Layout, changes: list[str]
) -> tuple[State, ModelConfig]:
    """Weights for RGB images, and the normalisation of the layout's networks.

    Other statistics than theirs are of somebody who has trained with them, and with RGB images.
    """
    if layout.normalize is None:
        return found, config
    usual = config.normalize == "auto"
    theirs = usual or same(statistics(config.normalize), layout.normalize)
    if layout.as_rgb:
        found = layout.as_rgb(found) if theirs else found
        other = "" if theirs else "RGB, not "
        why = "" if theirs else ", as `normalize` gives other statistics"
        changes.append(f"images: {other}{layout.fed}{why}")
    key = as_key(layout.normalize) if usual else config.normalize
    return found, config.model_copy(update={"normalize": key})


def _without_void(found: State, num_classes: int, layout: Layout, changes: list[str]) -> State:
    """The weights without the last class if that is void and the data has one class less."""
    key, axis = layout.outputs[0]
    if not layout.void or key not in found or found[key].shape[axis] != num_classes + 1:
        return found
    changes.append(f"the last of its {num_classes + 1} outputs, void, is dropped")
    cut = {k: found[k].narrow(d, 0, num_classes) for k, d in layout.outputs if k in found}
    return {**found, **cut}


def _stated(network: Network, layout: Layout) -> Normalization:
    """The network's normalisation, with a warning if it is not that of the layout."""
    stated = network.normalization
    if layout.normalize is None:
        return stated
    if same(stated.statistics, layout.normalize):
        return Normalization(stated.key, f"of {layout.name}")
    warning = (
        f"normalize: {shown(stated.statistics)} is configured, but {layout.name} was trained with "
        f"{shown(layout.normalize)}. Remove `normalize` to use these"
    )
    return Normalization(stated.key, stated.origin, warning)


def _stem(found: State) -> str:
    """timm's letter for a ResNet's stem: one 7x7 convolution, or three 3x3 of 32 or 64."""
    deep = found.get("encoder.conv1.0.weight")
    return "" if deep is None else {32: "c", 64: "s"}.get(len(deep), "d")


def _check_encoder(encoder: str, configured: str, path: Path) -> None:
    import timm

    if not timm.is_model(encoder.removeprefix("tu-")):
        raise CheckpointError(
            f"{path} has a stem of three 3x3 convolutions, smp's '{configured}' one of 7x7, and "
            f"timm has no '{encoder}'. No available encoder fits these weights"
        )


def _check_classes(found: State, num_classes: int, layout: Layout, path: Path) -> None:
    key, axis = layout.outputs[0]
    if key in found and found[key].shape[axis] != num_classes:
        raise CheckpointError(
            f"{path} has {found[key].shape[axis]} classes (rows of its classifier), the data has "
            f"{num_classes}. Use weights that were trained on the same classes"
        )


def _load(network: Network, found: State, what: str) -> int:
    """Loads all tensors or none; returns their number.

    Tensors that other programs do not have may be missing: counters of batch norm, auxiliary heads
    and the lane existence branch, which start untrained.
    """
    added = ("aux_heads.", *(() if any(map(_is_exist, found)) else ("exist_head.",)))
    own = {k: v for k, v in network.state_dict().items() if not k.startswith(added)}
    missing, unknown, shapes = differences(own, found)
    missing = [key for key in missing if not is_counter(key)]
    if missing or unknown or shapes:
        raise CheckpointError(
            f"{what} does not fit {network.title}: {len(own) - len(missing) - len(shapes)} of "
            f"{len(own)} tensors match. "
            f"{_listed('missing', missing)}{_listed('unknown', unknown)}"
            f"{_listed('other shapes', shapes)}Set arch, encoder and options as the file has them"
        )
    require_finite(found, what)
    # strict=False keeps tensors that may be missing; all others have been compared.
    network.load_state_dict(found, strict=False)
    return len(found)


def _is_exist(key: str) -> bool:
    return key.startswith("exist_head.")


def _listed(title: str, keys: list[str]) -> str:
    if not keys:
        return ""
    rest = f" … and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"{title} ({len(keys)}): {', '.join(keys[:_SHOWN])}{rest}. "
