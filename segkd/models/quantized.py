"""Networks whose weights, and optionally activations, are quantised while they train.

The weight of a layer becomes a parametrisation (``torch.nn.utils.parametrize``): the optimiser
moves float values, every forward pass computes with the nearest values on the grid, and their
gradient passes straight through. State dicts keep the names of the plain network and hold the float
values, so that runs with and without quantisation start from one another; ``baked_state`` has
quantised ones. Biases and normalisation stay float: they are few, and an exported file folds them.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from segkd.config.quantize import QuantizeConfig
from segkd.errors import CheckpointError
from segkd.models.network import Network
from segkd.models.quantizable import KINDS, Layers, choose_layers
from segkd.models.quantization_facts import QuantizationFacts
from segkd.ops.quantize import (
    group_count,
    levels,
    quantize,
    quantize_activation,
    symmetric_scale,
)

ORIGINAL = ".parametrizations.weight.original"  # torch's name of the float values
_HOOKED = "input_grid"  # submodule of a layer
_MOMENTUM = 0.01  # of ranges, as in torch.ao.quantization
_FLOAT_BYTES = 4


class GridWeight(nn.Module):
    """Parametrisation of a weight: any shape, the same shape on its grid.

    Args:
        config: the block ``quantize:``.
        axis: that of the output channels.
    """

    def __init__(self, config: QuantizeConfig, axis: int) -> None:
        super().__init__()
        self.config, self.axis = config, axis

    def forward(self, weight: Tensor) -> Tensor:
        """The quantised weight, of any shape; the gradient passes unchanged."""
        config = self.config
        return quantize(
            weight,
            bits=config.bits,
            per=config.per,
            grid=config.grid,
            axis=self.axis,
            bucket_size=config.bucket,
        )


class InputGrid(nn.Module):
    """Quantises the input of a layer on a range that follows the training images.

    The range of a step is known before it: the smallest and largest values of a step move it
    afterwards, those of all processes together.

    Args:
        bits: of an activation.

    Attributes:
        known: whether there is a range; without one, values pass unchanged.
        observing: whether values are recorded in evaluation mode as well.
    """

    range: Tensor
    seen: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits, self.known, self.observing = bits, False, False
        # Not in state dicts, whose names are those of the plain network.
        self.register_buffer("range", torch.zeros(2), persistent=False)
        self.register_buffer("seen", torch.zeros(2), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """The quantised values, any shape."""
        if self.training or self.observing:
            low, high = values.detach().float().aminmax()
            # seen = (-low, high), so that both are largest values.
            self.seen.copy_(torch.maximum(self.seen, torch.stack([-low, high])))
        if not self.known:
            return values
        return quantize_activation(values, self.range[0], self.range[1], self.bits)

    @torch.no_grad()
    def take(self, seen: Tensor) -> None:
        """Moves the range towards what all processes saw; sets it, if there was none.

        Args:
            seen: (2,) minus the smallest value and the largest, at least 0 both.
        """
        new = seen * seen.new_tensor([-1.0, 1.0])
        moved = torch.lerp(self.range, new, _MOMENTUM) if self.known else new
        # A layer that did not run, or only on zeros, keeps its range.
        self.range.copy_(torch.where(seen.sum() > 0, moved, self.range))
        self.seen.zero_()
        self.known = True


def quantize_network(network: Network, config: QuantizeConfig) -> Layers:
    """Quantises the weights, and the inputs, of a network's layers in place.

    Raises:
        ConfigError: it has no such layer.
    """
    layers = choose_layers(network, config)
    for path in layers.quantized:
        layer = network.get_submodule(path)
        parametrize.register_parametrization(layer, "weight", GridWeight(config, _axis(layer)))
        layer.register_state_dict_post_hook(_with_plain_name)
        layer.register_load_state_dict_pre_hook(_with_torchs_name)
        if config.activations:
            _add_input_grid(layer, config.activations)
    return layers


def quantized_layers(network: nn.Module) -> dict[str, GridWeight]:
    """The parametrisations by path of their layers; empty for a plain network."""
    return {
        path.removesuffix(".parametrizations.weight.0"): module
        for path, module in network.named_modules()
        if isinstance(module, GridWeight)
    }


def input_grids(network: nn.Module) -> dict[str, InputGrid]:
    """Grids of inputs by path of their layers; empty if activations are float."""
    return {
        path.removesuffix(f".{_HOOKED}"): module
        for path, module in network.named_modules()
        if isinstance(module, InputGrid)
    }


def plain_name(name: str) -> str:
    """The name that a parameter has in the plain network."""
    return f"{name.removesuffix(ORIGINAL)}.weight" if name.endswith(ORIGINAL) else name


@torch.no_grad()
def baked_state(network: nn.Module) -> dict[str, Tensor]:
    """The state dict of the plain network with quantised weights."""
    state: dict[str, Tensor] = network.state_dict()
    for path in quantized_layers(network):
        state[f"{path}.weight"] = _weight(network, path)
    return state


@torch.no_grad()
def bake_weights(network: nn.Module) -> None:
    """Replaces the weights by the quantised ones; the layers are plain ones again."""
    for path in quantized_layers(network):
        parametrize.remove_parametrizations(network.get_submodule(path), "weight")


def release_weights(network: nn.Module) -> None:
    """Lets weights that are still quantised be plain float ones again, and inputs of layers too.

    Baked ones, and the inputs of their layers, stay as they are.
    """
    paths = list(quantized_layers(network))
    for path in paths:
        layer = network.get_submodule(path)
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    if paths:
        without_input_grids(network)


def facts_of(network: nn.Module) -> QuantizationFacts | None:
    """How a network that is being trained is quantised; None for a plain one."""
    layers = quantized_layers(network)
    if not layers:
        return None
    ranges = {path: grid.range.tolist() for path, grid in input_grids(network).items()}
    settings = next(iter(layers.values())).config
    return QuantizationFacts(settings=settings, layers=list(layers), ranges=ranges)


def restore_input_grids(network: Network, facts: QuantizationFacts, where: object) -> None:
    """Quantises the inputs of layers of a loaded network, as in its training.

    Args:
        network: the plain network.
        facts: of its file.
        where: the file, for messages.

    Raises:
        CheckpointError: it has no such layer.
    """
    for path in facts.layers:
        try:
            layer = network.get_submodule(path)
        except AttributeError:
            layer = network
        if not isinstance(layer, KINDS):
            raise CheckpointError(
                f"{where}: its layer '{path}' is said to be quantised, but {network.title} has no "
                "such layer. Use the file as segkd wrote it"
            )
        bits = facts.settings.activations
        if bits:
            grid = _add_input_grid(layer, bits)
            grid.range.copy_(torch.tensor(facts.ranges[path]))
            grid.known = True


def without_input_grids(network: nn.Module) -> bool:
    """Lets the layers of a network compute with float inputs; whether they did not."""
    paths = list(input_grids(network))
    for path in paths:
        delattr(network.get_submodule(path), _HOOKED)
    return bool(paths)


def stored_bytes(network: nn.Module, facts: QuantizationFacts | None) -> int:
    """Bytes of a network whose weights are stored with their bits.

    Quantised weights have their bits and, per group, a scale of 4 bytes (grids of kind ``range``: a
    smallest value as well); everything else of the state dict is stored as it is.

    Args:
        network: quantised or plain; auxiliary heads do not count.
        facts: of the network; None: nothing is quantised.
    """
    quantized = {f"{path}.weight": path for path in facts.layers} if facts else {}
    total = 0
    for name, value in network.state_dict().items():
        if name.startswith("aux_heads."):
            continue
        if name not in quantized or facts is None:
            total += value.numel() * value.element_size()
            continue
        settings = facts.settings
        axis = _axis(network.get_submodule(quantized[name]))
        groups = group_count(value.shape, settings.per, axis, settings.bucket)
        numbers = groups * (1 if settings.grid == "symmetric" else 2)
        total += -(-value.numel() * settings.bits // 8) + _FLOAT_BYTES * numbers
    return total


@torch.no_grad()
def largest_levels(network: nn.Module, facts: QuantizationFacts) -> dict[str, list[int]]:
    """By layer, the largest |k| of each output channel, whose weights are k times a scale.

    They outlive the folding of a normalisation, which multiplies channels: the scale of a folded
    channel is its largest weight over this number.

    Args:
        network: with quantised weights on a grid that ``fits_int8``.
        facts: of the network.
    """
    found = {}
    for path in facts.layers:
        weight, axis = _weight(network, path), _axis(network.get_submodule(path))
        scale = symmetric_scale(weight, facts.settings.bits, facts.settings.per, axis)
        rows = weight.movedim(axis, 0).flatten(1)
        found[path] = levels(rows, scale[:, None]).abs().amax(1).int().tolist()
    return found


def _weight(network: nn.Module, path: str) -> Tensor:
    weight = network.get_submodule(path).weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def _axis(layer: nn.Module) -> int:
    """The axis of the output channels of a layer's weight."""
    return 1 if isinstance(layer, nn.ConvTranspose2d) else 0


def _add_input_grid(layer: nn.Module, bits: int) -> InputGrid:
    device = next(layer.parameters()).device
    grid = InputGrid(bits).to(device).train(layer.training)
    setattr(layer, _HOOKED, grid)
    if _on_its_grid not in layer._forward_pre_hooks.values():  # left of an earlier grid
        layer.register_forward_pre_hook(_on_its_grid)
    return grid


def _on_its_grid(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    grid = getattr(layer, _HOOKED, None)
    return inputs if grid is None else (grid(inputs[0]), *inputs[1:])


def _with_plain_name(
    layer: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]
) -> None:
    """After ``state_dict``: the float values have the name that they have in the plain network."""
    name = f"{prefix}{ORIGINAL.removeprefix('.')}"
    if name in state:
        state[f"{prefix}weight"] = state.pop(name)


def _with_torchs_name(layer: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Before ``load_state_dict``: the inverse."""
    if f"{prefix}weight" in state and parametrize.is_parametrized(layer, "weight"):
        state[f"{prefix}{ORIGINAL.removeprefix('.')}"] = state.pop(f"{prefix}weight")
