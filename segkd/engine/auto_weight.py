"""How hard a method pulls beside the labels, and weights that follow from it.

The pull of an entry is the norm of its gradient at the values of the student that it taps, over
the norm of the task loss's gradient at the same values. Gradients at taps are cheap: no backward
pass through the layers below them. With ``weight: {auto: 0.3}`` an entry's weight w is such that
its weighted pull is 0.3: at each measurement

    log w ← smoothing · log w + (1 − smoothing) · log(0.3 / pull)

KD-SVD (Lee et al., ECCV 2018) and GradNorm (Chen et al., arXiv 1711.02257) balance gradients in
the same spirit.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from segkd.errors import ConfigError
from segkd.methods.base import AutoWeight, Method
from segkd.runtime import Runtime
from segkd.structures import Outputs

STRONG, WEAK = 3.0, 0.02  # pulls beyond which a weight is most likely a mistake
_PATIENCE = 10  # measurements in a row without a result, after which an entry is told about
_RANGE = math.log(1e-6), math.log(1e6)  # of a weight's logarithm


def advice(entry: str, pull: float, weight: float, fresh: bool = False) -> str | None:
    """What to change about a weight whose entry pulls too hard or hardly at all; None: nothing.

    Args:
        entry: its name under ``methods:``.
        pull: with its weight.
        weight: its factor of all terms.
        fresh: it has layers that have not learned yet, so that it hardly pulls at first.
    """
    if (fresh or pull >= WEAK) and pull <= STRONG:
        return None
    number = f"{0.3 * weight / pull:.2g}"
    return f"methods.{entry}.weight={number}, or methods.{entry}.weight={{auto: 0.3}}"


class AutoWeights(nn.Module):
    """The weights of the entries that have ``weight: {auto: …}``.

    A weight is measured at the end of a step and holds from the next one on, so micro-steps and
    processes have no part in it. Before its first measurement an entry teaches its own layers
    only.

    Raises:
        ConfigError: an entry without taps that get a gradient, or a task weight of 0.
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
        """The weight of an entry; 1 for an entry with a number, None before a measurement."""
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
        """Moves the weights; entries without a pull keep theirs."""
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
        """What to tell of entries that still have no weight; once for each.

        Args:
            last: this was the last step.
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
                f"methods.{name}.weight={{auto: {config.auto:g}}} has found no weight: {why}. So "
                "far the entry has taught the student nothing. Give a number, or look at its taps, "
                "start and mask"
            )
        return found

    def columns(self) -> list[str]:
        """Their columns in metrics.csv."""
        return [f"weight/{name}" for name in self.configs]

    def values(self) -> dict[str, float]:
        """The weights found so far, by column."""
        factors = {f"weight/{name}": self.factor(name) for name in self.configs}
        return {column: factor for column, factor in factors.items() if factor is not None}

    def refresh(self) -> None:
        """Reads the buffers again, after a checkpoint was loaded."""
        self._logs = {}

    def _log(self, name: str) -> float:
        # Kept as a number, too: reading the buffer at every step would wait for the device.
        if name not in self._logs:
            self._logs[name] = float(getattr(self, f"log_{name}"))
        return self._logs[name]


class PullMeter:
    """Collects the gradients of the micro-steps of one step, at the taps of some entries.

    Args:
        methods: the entries to be measured, by name.
        runtime: adds over processes.
        loss_scale: multiplies the losses, so that gradients in fp16 do not vanish.
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
        """Measures a micro-step. Leaves the graph and the parameters' gradients as they are.

        Args:
            student: outputs that the task loss was computed from.
            views: by entry, the outputs that its method saw.
            task: the weighted task loss, reduced for this process.
            losses: by entry, its loss with the weights of its terms, but not its own.
        """
        taps = sorted(
            {tap for method in self.methods.values() for tap in method.taps_with_gradient}
        )
        edges = {tap: _edge(student.tap(tap)) for tap in taps}
        edges = {tap: edge for tap, edge in edges.items() if edge is not None}
        of_task = dict(zip(edges, self._squared_norms(task, list(edges.values())), strict=True))
        for name, method in self.methods.items():
            own = [tap for tap in method.taps_with_gradient if tap in edges]
            values = [views[name].tap(tap) for tap in own]
            squares = self._squared_norms(losses[name], values)
            pair = [sum(of_task[tap] for tap in own), sum(squares)]
            self._squares[name].append(torch.stack([torch.as_tensor(one) for one in pair]))

    def pulls(self) -> dict[str, float | None]:
        """Unweighted pulls; None where either gradient is zero or not finite."""
        if not self._squares:
            return {}
        table = torch.stack([torch.stack(rows).sum(dim=0) for rows in self._squares.values()])
        table = self.runtime.all_reduce(table.to(self.runtime.device))
        pulls: dict[str, float | None] = {}
        for name, (task, method) in zip(self._squares, table.tolist(), strict=True):
            usable = 0 < task < math.inf and 0 < method < math.inf
            pulls[name] = math.sqrt(method / task) if usable else None
        return pulls

    def _squared_norms(self, loss: Tensor, places: list) -> list[Tensor]:
        """Float64, 0-d each."""
        if not places or not loss.requires_grad:
            return [torch.zeros((), dtype=torch.float64, device=loss.device) for _ in places]
        gradients = torch.autograd.grad(
            loss * self.loss_scale, places, retain_graph=True, allow_unused=True
        )
        return [
            torch.zeros((), dtype=torch.float64, device=loss.device)
            if gradient is None
            else torch.linalg.vector_norm(gradient, dtype=torch.float64).square()
            for gradient in gradients
        ]


def _edge(value: Tensor) -> GradientEdge | None:
    """Where gradients reach a tapped value; None if they do not.

    A value that is overwritten later in the network was copied for the taps: the network itself
    goes on from what was copied.
    """
    node = value.grad_fn
    if node is None:
        return None
    if node.name() == "CloneBackward0":
        node, number = node.next_functions[0]
        return None if node is None else GradientEdge(node, number)
    return torch.autograd.graph.get_gradient_edge(value)
