"""The quantised student in training: ranges of activations that are the same on all processes."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from segkd.config.quantize import QuantizeConfig
from segkd.models.network import Network
from segkd.models.quantized import (
    facts_of,
    input_grids,
    quantize_network,
    stored_bytes,
)
from segkd.runtime import Runtime

_SHOWN = 3  # paths of layers


class Quantizer:
    """Quantises a student in place (``quantize:``), and follows the ranges of its activations.

    Args:
        student: with its initial weights.
        config: the block ``quantize:``.

    Attributes:
        layers: what is quantised, and what is not.

    Raises:
        ConfigError: the student has no layer to quantise.
    """

    def __init__(self, student: Network, config: QuantizeConfig) -> None:
        self.student, self.layers = student, quantize_network(student, config)
        self._grids = list(input_grids(student).values())
        self._first = torch.empty(0, 2)
        for grid in self._grids:
            grid.observing = True  # the dry step sets the first ranges, also of frozen layers

    def note(self, runtime: Runtime) -> None:
        """At the end of the dry step, which restores all buffers. Collective."""
        self._first = self._seen(runtime).clone()

    def begin(self) -> None:
        """After the dry step: what was noted is the first range of each layer."""
        self._move(self._first)
        for grid in self._grids:
            grid.observing = False

    def after_step(self, runtime: Runtime) -> None:
        """Moves the ranges by what the images of a step showed. Collective."""
        if any(grid.training for grid in self._grids):
            self._move(self._seen(runtime))

    def state_dict(self, average: nn.Module) -> dict[str, dict[str, Tensor]]:
        """Ranges of the student and of its moving average (or the student), by layer."""
        return {"student": _ranges(self.student), "average": _ranges(average)}

    def load_state_dict(self, state: Mapping[str, Any], average: nn.Module) -> None:
        """Restores what ``state_dict`` returned."""
        for network, ranges in ((average, state["average"]), (self.student, state["student"])):
            for path, grid in input_grids(network).items():
                grid.range.copy_(ranges[path])

    def _seen(self, runtime: Runtime) -> Tensor:
        """What the inputs of all layers were since the ranges moved, (layers, 2)."""
        own = [grid.seen for grid in self._grids]
        return runtime.all_reduce(torch.stack(own), "max") if own else self._first

    def _move(self, seen: Tensor) -> None:
        for grid, one in zip(self._grids, seen, strict=True):
            grid.take(one)


def _ranges(network: nn.Module) -> dict[str, Tensor]:
    return {path: grid.range.detach().cpu() for path, grid in input_grids(network).items()}


def about(student: Network, quantizer: Quantizer) -> Iterator[str]:
    """Lines for the log: what is quantised, and the size of the student."""
    facts, kept = facts_of(student), quantizer.layers.kept
    small, large = stored_bytes(student, facts), stored_bytes(student, None)
    shown = ", ".join(f"{path} ({why})" for path, why in list(kept.items())[:_SHOWN])
    more = f", {len(kept) - _SHOWN} more" if len(kept) > _SHOWN else ""
    yield (
        f"quantize: {facts} in {len(quantizer.layers.quantized)} layers; stored in "
        f"{small / 1e6:.2f} MB instead of {large / 1e6:.2f} MB"
        + (f"; float: {shown}{more}" if kept else "")
    )
