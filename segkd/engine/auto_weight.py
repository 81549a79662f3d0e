"""Gradient ratios of methods to the task loss, and weights that follow from them.

The pull of an entry is the norm of its gradient at the tapped values of the student, divided by
the norm of the task loss's gradient at the same values. Both are total derivatives: what reaches
a tap through deeper ones counts. Gradients at taps are cheap: no backward pass through the layers
below them. With ``weight: {auto: 0.3}`` an entry's weight w is such that
its weighted pull is 0.3: at each measurement

    log w ← smoothing · log w + (1 − smoothing) · log(0.3 / pull)

KD-SVD (Lee et al., ECCV 2018) and GradNorm (Chen et al., arXiv 1711.02257) balance gradients in
the same spirit.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from segkd.errors import ConfigError
from segkd.methods.base import AutoWeight, Method
from segkd.runtime import Runtime
from segkd.structures import Outputs

STRONG, WEAK = 3.0, 0.02  # pulls beyond which a weight is most likely a mistake
_PATIENCE = 10  # measurements in a row without a result, after which there is a warning
_RANGE = math.log(1e-6), math.log(1e6)  # of a weight's logarithm


def advice(entry: str, pull: float, weight: float, fresh: bool = False) -> str | None:
    """What to set instead of a weight with too large or too small a pull; None: nothing.

    Args:
        entry: name under ``methods:``.
        pull: gradient ratio, weight included.
        weight: factor of all terms.
        fresh: the method has untrained layers, so that a small pull is normal.
    """
    if (fresh or pull >= WEAK) and pull <= STRONG:
        return None
    number = f"{0.3 * weight / pull:.2g}"
    return f"methods.{entry}.weight={number}, or methods.{entry}.weight={{auto: 0.3}}"


class AutoWeights(nn.Module):
    """The weights of the entries that have ``weight: {auto: …}``.

    A weight is measured at the end of a step and used from the next one on, so that it does not
    depend on micro-steps and processes. Before its first measurement an entry trains its own
    layers only.

    Raises:
        ConfigError: an entry without taps that receive a gradient, or a task weight of 0.
    """

    def __init__(self, methods: Mapping[str, Method], task_weight: float) -> None:
        super().__init__()
        self.configs = {
            name: method.config.weight
            for name, method in methods.items()
            if isinstance(method.config.weight, AutoWeight)
        }
        for name in self.configs:
            if not methods[name].taps_with_gradient:
                raise ConfigError(
                    f"methods.{name}.weight: {{auto: …}} compares gradients at the student's taps, "
                    "and this method has none. Give a number"
                )
            if task_weight == 0:
                raise ConfigError(
                    f"methods.{name}.weight: {{auto: …}} compares with the gradient of the task "
                    "loss, and task.weight is 0. Give a number"
                )
            self.register_buffer(f"log_{name}", torch.full((), math.nan, dtype=torch.float64))
        self._logs: dict[str, float] = {}
        self._fruitless = dict.fromkeys(self.configs, 0)
        self._told: set[str] = set()

    def factor(self, name: str) -> float | None:
        """The measured weight of an entry; None before a measurement, 1 for a fixed weight."""
        if name not in self.configs:
            return 1.0
        log = self._log(name)
        return None if math.isnan(log) else math.exp(log)

    def due(self, step: int, active: Iterable[str]) -> list[str]:
        """The entries among ``active`` that are measured in this step."""
        found = []
        for name in active:
            config = self.configs.get(name)
            if config is None:
                continue
            frozen = config.freeze is not None and step >= config.freeze
            if self.factor(name) is None or (step % config.every == 0 and not frozen):
                found.append(name)
        return found

    def update(self, pulls: Mapping[str, float | None]) -> None:
        """Updates the weights; entries without a pull keep theirs."""
        for name, pull in pulls.items():
            config = self.configs[name]
            self._fruitless[name] = 0 if pull is not None else self._fruitless[name] + 1
            if pull is None:
                continue
            target, log = math.log(config.auto / pull), self._log(name)
            if not math.isnan(log):
                target = config.smoothing * log + (1 - config.smoothing) * target
            self._logs[name] = min(max(target, _RANGE[0]), _RANGE[1])
            getattr(self, f"log_{name}").fill_(self._logs[name])

    def doubts(self, last: bool = False) -> list[str]:
        """Warnings about entries that still have no weight, once each.

        Args:
            last: whether this was the last step.
        """
        found = []
        for name, config in self.configs.items():
            times = self._fruitless[name]
            late = times >= _PATIENCE or last
            if not late or name in self._told or self.factor(name) is not None:
                continue
            self._told.add(name)
            why = (
                f"in {times} measurements its gradient at the student's taps, or that of the task "
                "loss, was zero or not finite"
                if times
                else "it was never measured: the run ended before its start and adapter_warmup"
            )
            found.append(
                f"methods.{name}.weight={{auto: {config.auto:g}}} has no weight yet: {why}. So "
                "far the entry has not trained the student. Give a number, or check its taps, "
                "start and mask"
            )
        return found

    def columns(self) -> list[str]:
        """Columns of these weights in metrics.csv."""
        return [f"weight/{name}" for name in self.configs]

    def values(self) -> dict[str, float]:
        """The weights measured so far, by column."""
        factors = {f"weight/{name}": self.factor(name) for name in self.configs}
        return {column: factor for column, factor in factors.items() if factor is not None}

    def refresh(self) -> None:
        """Reads the buffers again, after a checkpoint has been loaded."""
        self._logs = {}

    def _log(self, name: str) -> float:
        # Cached as a number: reading the buffer in every step would synchronise with the device.
        if name not in self._logs:
            self._logs[name] = float(getattr(self, f"log_{name}"))
        return self._logs[name]


class PullMeter:
    """Sums squared gradient norms of the micro-steps of one step, at the taps of some entries.

    Args:
        methods: the entries to measure, by name.
        runtime: sums over processes.
        loss_scale: factor of the losses, so that gradients in fp16 do not underflow.
    """

    def __init__(
        self, methods: Mapping[str, Method], runtime: Runtime, loss_scale: float = 1.0
    ) -> None:
        self.methods, self.runtime, self.loss_scale = methods, runtime, loss_scale
        self._squares: dict[str, list[Tensor]] = {name: [] for name in methods}

    def add(
        self,
        student: Outputs,
        views: Mapping[str, Outputs],
        task: Tensor,
        losses: Mapping[str, Tensor],
    ) -> None:
        """Measures a micro-step; the graph and the parameters' gradients are left unchanged.

        Args:
            student: outputs that the task loss was computed from.
            views: by entry, the outputs that its method received.
            task: weighted task loss of this process, 0-d.
            losses: by entry, its loss with the weights of its terms but not of the entry, 0-d.
        """
        taps = sorted(
            {tap for method in self.methods.values() for tap in method.taps_with_gradient}
        )
        found = {tap: _edge(student.tap(tap)) for tap in taps}
        edges = {tap: edge for tap, edge in found.items() if edge is not None}
        squares = _squared_norms(self._gradients(task, list(edges.values())), task.device)
        of_task = dict(zip(edges, squares, strict=True))
        for name, method in self.methods.items():
            own = {tap: edges[tap] for tap in method.taps_with_gradient if tap in edges}
            if views[name] is student:
                gradients = self._gradients(losses[name], list(own.values()))
            else:
                copies = [views[name].tap(tap) for tap in own]
                gradients = _through(student, own, self._gradients(losses[name], copies))
            squares = _squared_norms(gradients, task.device)
            pair = [sum(of_task[tap] for tap in own), sum(squares)]
            self._squares[name].append(torch.stack([torch.as_tensor(one) for one in pair]))

    def pulls(self) -> dict[str, float | None]:
        """Unweighted pulls by entry; None where either gradient is zero or not finite."""
        if not self._squares:
            return {}
        table = torch.stack([torch.stack(rows).sum(dim=0) for rows in self._squares.values()])
        table = self.runtime.all_reduce(table.to(self.runtime.device))
        pulls: dict[str, float | None] = {}
        for name, (task, method) in zip(self._squares, table.tolist(), strict=True):
            usable = 0 < task < math.inf and 0 < method < math.inf
            pulls[name] = math.sqrt(method / task) if usable else None
        return pulls

    def _gradients(
        self, loss: Tensor, places: Sequence[Tensor] | Sequence[GradientEdge]
    ) -> list[Tensor | None]:
        """Of a 0-d loss at ``places``, scaled; None where it does not depend on them."""
        if not places or not loss.requires_grad:
            return [None] * len(places)
        scaled = loss * self.loss_scale
        return list(torch.autograd.grad(scaled, places, retain_graph=True, allow_unused=True))


def _through(
    student: Outputs, edges: Mapping[str, GradientEdge], gradients: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The gradients at the taps that follow from those at copies of all of them.

    A method sees copies during its `adapter_warmup`: its gradient is scaled down behind them.
    """
    pairs = zip(edges, gradients, strict=True)
    known = {tap: gradient for tap, gradient in pairs if gradient is not None}
    if not known:
        return list(gradients)
    values = [student.tap(tap) for tap in known]
    places, seeds = list(edges.values()), list(known.values())
    return list(torch.autograd.grad(values, places, seeds, retain_graph=True, allow_unused=True))


def _squared_norms(gradients: Sequence[Tensor | None], device: torch.device) -> list[Tensor]:
    """Float64, 0-d each; 0 for None."""
    return [
        torch.zeros((), dtype=torch.float64, device=device)
        if gradient is None
        else torch.linalg.vector_norm(gradient, dtype=torch.float64).square()
        for gradient in gradients
    ]


def _edge(value: Tensor) -> GradientEdge | None:
    """The gradient edge of a tapped value; None if it receives no gradient.

    A value that the network overwrites later was copied for the taps: the network itself continues
    from the original, whose edge is returned.
    """
    node = value.grad_fn
    if node is None:
        return None
    if node.name() == "CloneBackward0":
        node, number = node.next_functions[0]
        return None if node is None else GradientEdge(node, number)
    return torch.autograd.graph.get_gradient_edge(value)
