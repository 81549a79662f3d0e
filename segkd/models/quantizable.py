"""Which layers of a network can be quantised, and which are its first and its last ones."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from segkd.config.quantize import QuantizeConfig
from segkd.errors import ConfigError
from segkd.models.network import Network
from segkd.ops.mode import eval_mode

KINDS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


@dataclass(frozen=True)
class Layers:
    """The layers of a network, by path.

    Attributes:
        quantized: those that are quantised.
        kept: those that stay float, and why.
    """

    quantized: tuple[str, ...]
    kept: Mapping[str, str]


def choose_layers(network: Network, config: QuantizeConfig) -> Layers:
    """Convolutions and linear layers that run, without auxiliary heads.

    The first layers are those that the image reaches through no other layer, the last ones those
    from which logits or lane existence are reached through no other layer. They are found by a
    forward pass, so a network may have several.

    Raises:
        ConfigError: no layer is left.
    """
    known = {
        path: module
        for path, module in network.named_modules()
        if isinstance(module, KINDS) and not path.startswith("aux_heads.")
    }
    first, last, running = _positions(network, known) if known else (set(), set(), set())
    plain = {path: module.weight for path, module in known.items() if _is_plain(module)}
    shared = [id(weight) for weight in plain.values()]
    kept: dict[str, str] = {}
    for path, module in known.items():
        if path not in running:
            kept[path] = "not run as a layer"
        elif path not in plain:
            kept[path] = "its weight is computed from others"
        elif shared.count(id(plain[path])) > 1:
            kept[path] = "shares its weight"
        elif isinstance(module, nn.ConvTranspose2d) and module.groups > 1:
            kept[path] = "transposed, with groups"
        elif path in first | last and not config.first_and_last:
            kept[path] = "first" if path in first else "last"
    chosen = tuple(path for path in known if path not in kept)
    if not chosen:
        reasons = "; ".join(f"{path}: {why}" for path, why in kept.items()) or "it has none"
        raise ConfigError(
            f"quantize: no layer of {network.title} is left to quantise ({reasons}). Set "
            "quantize.first_and_last=true, or remove `quantize`"
        )
    return Layers(chosen, kept)


def _is_plain(layer: nn.Module) -> bool:
    return isinstance(layer._parameters.get("weight"), nn.Parameter)


def _positions(
    network: Network, layers: Mapping[str, nn.Module]
) -> tuple[set[str], set[str], set[str]]:
    """The layers next to the image, those next to the outputs, and all that run.

    With the output of each layer cut off from its input, a gradient path is one through no layer.
    """
    first: set[str] = set()
    running: set[str] = set()
    cut: dict[str, list[Tensor]] = {}

    def enter(path: str, inputs: tuple[Any, ...]) -> None:
        running.update([path] if inputs else [])
        first.update([path] if inputs and inputs[0].requires_grad else [])

    def leave(path: str, output: Tensor, *, leaf: bool) -> Tensor:
        output = output.detach().requires_grad_(leaf)
        cut.setdefault(path, []).append(output)
        return output.clone()  # a leaf could not be changed in place

    image = torch.zeros(1, 3, *network.probe_size(), device=network.device)
    with eval_mode(network), _constant(network), torch.enable_grad():
        with _hooks(layers, enter, partial(leave, leaf=False)):
            network(image.clone().requires_grad_())
        cut.clear()
        with _hooks(layers, lambda *_: None, partial(leave, leaf=True)):
            outputs = network(image)
        ends = [value for value in (outputs.logits, outputs.exist) if value is not None]
        leaves = [(path, value) for path, values in cut.items() for value in values]
        gradients = torch.autograd.grad(
            sum(end.sum() for end in ends), [value for _, value in leaves], allow_unused=True
        )
    last = {
        path for (path, _), gradient in zip(leaves, gradients, strict=True) if gradient is not None
    }
    return first, last, running


@contextlib.contextmanager
def _hooks(
    layers: Mapping[str, nn.Module],
    enter: Callable[[str, tuple[Any, ...]], None],
    leave: Callable[[str, Tensor], Tensor],
) -> Iterator[None]:
    """Calls ``enter`` before each layer and replaces its output by that of ``leave``."""
    with contextlib.ExitStack() as stack:
        for path, layer in layers.items():
            before = layer.register_forward_pre_hook(
                lambda module, inputs, path=path: enter(path, inputs)
            )
            after = layer.register_forward_hook(
                lambda module, inputs, output, path=path: leave(path, output)
            )
            stack.callback(before.remove)
            stack.callback(after.remove)
        yield


@contextlib.contextmanager
def _constant(network: nn.Module) -> Iterator[None]:
    """Parameters require no gradient inside."""
    before = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    network.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
