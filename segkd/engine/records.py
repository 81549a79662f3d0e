"""What a run remembers of its steps between two lines of the log, and in the whole."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from segkd.engine.objective import Weighted
from segkd.errors import TrainingError
from segkd.runtime import Runtime


class LossMeter:
    """Means of terms since the last line, and seconds by part of the whole run.

    Terms stay on the device until ``collect``: one transfer a line, none a step.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[int, list[str], Tensor]] = []
        self._sums: dict[str, list[float]] = {}
        self.seconds: dict[str, float] = {}
        self.steps = 0

    def add(self, step: int, terms: Sequence[Weighted]) -> None:
        """Notes the unweighted values of a (micro-)step with their counts."""
        if not terms:
            return
        values = torch.stack([weighted.term.value.detach().double() for weighted in terms])
        counts = torch.stack(
            [
                values.new_ones(()) if item.term.count is None else item.term.count.to(values)
                for item in terms
            ]
        )
        self._pending.append((step, [item.name for item in terms], torch.stack([values, counts])))

    def check(self) -> None:
        """Reads what is pending. Raises TrainingError naming the first term that is not finite."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        rows = torch.cat([numbers for _, _, numbers in pending], dim=1).cpu()
        keys = [(step, name) for step, names, _ in pending for name in names]
        for (step, name), value, count in zip(keys, *rows.tolist(), strict=True):
            if not math.isfinite(value):
                raise TrainingError(
                    f"the loss '{name}' became {value} at step {step}. The last checkpoint is from "
                    "before it. Lower optim.lr or this loss's weight, set optim.clip=1.0 or a "
                    "longer schedule.warmup, or look for broken images with `segkd data check`"
                )
            total = self._sums.setdefault(name, [0.0, 0.0])
            total[0] += value * count
            total[1] += count

    def collect(self, runtime: Runtime, names: Sequence[str]) -> dict[str, float]:
        """The means over all processes since the last call, of terms that occurred."""
        self.check()
        table = [self._sums.get(name, [0.0, 0.0]) for name in names]
        self._sums = {}
        if not table:
            return {}
        sums = runtime.all_reduce(torch.tensor(table, dtype=torch.float64, device=runtime.device))
        means = (sums[:, 0] / sums[:, 1]).tolist()
        return {name: mean for name, mean in zip(names, means, strict=True) if mean == mean}

    def add_seconds(self, parts: dict[str, float], steps: int) -> None:
        for name, seconds in parts.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.steps += steps

    def seconds_per_step(self) -> dict[str, float]:
        return {name: seconds / max(self.steps, 1) for name, seconds in self.seconds.items()}

    def state_dict(self) -> dict:
        self.check()
        return {"sums": self._sums, "seconds": self.seconds, "steps": self.steps}

    def load_state_dict(self, state: dict) -> None:
        self._sums = {name: list(pair) for name, pair in state["sums"].items()}
        self.seconds, self.steps = dict(state["seconds"]), state["steps"]
