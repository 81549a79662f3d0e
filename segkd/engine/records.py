"""Running means of losses, and seconds by part of a step."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from segkd.engine.objective import Weighted
from segkd.errors import TrainingError
from segkd.runtime import Runtime
from segkd.structures import Outputs


class LossMeter:
    """Means of terms since the last log line, and seconds by part of the whole run.

    Terms stay on the device until ``collect``: one transfer per log line, none per step.

    Attributes:
        seconds: by part of a step, over the whole run.
        steps: number of steps in ``seconds``.
        rates: seconds per step between two log lines, over the whole run.
        skipped: how often this process has skipped each unusable sample since the start or resume,
            by message; the loader's.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[int, list[str], Tensor]] = []
        self._sums: dict[str, list[float]] = {}
        self.seconds: dict[str, float] = {}
        self.steps = 0
        self.rates: list[float] = []
        self._left_out: dict[str, int | Tensor] = {}  # by this process since the start or resume
        self._left_out_before: dict[str, int] = {}
        self.skipped: Mapping[str, int] = {}
        self._skipped_before: list[str] = []

    def add(
        self, step: int, terms: Sequence[Weighted], teachers: Mapping[str, Outputs] | None = None
    ) -> None:
        """Records the unweighted values of a (micro-)step with their counts.

        Args:
            step: for messages.
            terms: the values.
            teachers: outputs by teacher; images of which one knows nothing are counted.
        """
        for name, outputs in (teachers or {}).items():
            before = self._left_out.get(name, 0)
            if outputs.known is not None:
                before = before + (~outputs.known.flatten(1).any(1)).sum()
            self._left_out[name] = before
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
        """Reads pending values. Raises TrainingError naming the first that is not finite."""
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
                    "longer schedule.warmup, or check the images with `segkd data check`"
                )
            total = self._sums.setdefault(name, [0.0, 0.0])
            total[0] += value * count
            total[1] += count

    def collect(self, runtime: Runtime, names: Sequence[str]) -> dict[str, float]:
        """Means over all processes since the last call, of the terms that occurred."""
        self.check()
        table = [self._sums.get(name, [0.0, 0.0]) for name in names]
        self._sums = {}
        if not table:
            return {}
        sums = runtime.all_reduce(torch.tensor(table, dtype=torch.float64, device=runtime.device))
        means = (sums[:, 0] / sums[:, 1]).tolist()
        return {name: mean for name, mean in zip(names, means, strict=True) if mean == mean}

    def add_seconds(self, parts: Mapping[str, float], steps: int) -> None:
        """Adds the seconds by part of ``steps`` steps."""
        for name, seconds in parts.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.steps += steps
        self.rates.append(sum(parts.values()) / steps)

    def seconds_per_step(self) -> dict[str, float]:
        """Mean seconds per step, by part."""
        return {name: seconds / max(self.steps, 1) for name, seconds in self.seconds.items()}

    def median_seconds_per_step(self) -> float | None:
        """The median over log lines, which work of others on the machine changes little."""
        return statistics.median(self.rates) if self.rates else None

    def left_out(self, runtime: Runtime) -> dict[str, int]:
        """By teacher, how many images were trained without any prediction of it. Collective."""
        names = sorted(self._left_out)
        counts: list[float] = []
        if names:
            own = torch.tensor([float(self._left_out[name]) for name in names], dtype=torch.float64)
            counts = runtime.all_reduce(own.to(runtime.device)).tolist()
        found = dict(self._left_out_before)
        for name, count in zip(names, counts, strict=True):
            found[name] = found.get(name, 0) + int(count)
        return found

    def unusable(self, runtime: Runtime) -> list[str]:
        """Messages about the samples that were skipped in the whole run. Collective."""
        own = runtime.gather_objects(list(self.skipped))
        return list(dict.fromkeys([*self._skipped_before, *itertools.chain(*own)]))

    def state_dict(self, runtime: Runtime) -> dict[str, Any]:
        """Sums as plain data. Collective. Raises TrainingError like ``check``."""
        self.check()
        return {
            "sums": runtime.gather_objects(self._sums),
            "seconds": self.seconds,
            "steps": self.steps,
            "rates": self.rates,
            "left_out": self.left_out(runtime),
            "skipped": self.unusable(runtime),
        }

    def load_state_dict(self, state: Mapping[str, Any], runtime: Runtime) -> None:
        """Restores what ``state_dict`` returned; exact on the same number of processes."""
        sums = state["sums"]
        parts = (
            [sums] if isinstance(sums, dict) else sums
        )  # of the first process, in early versions
        if len(parts) != runtime.world:
            parts = [_added(parts), *[{}] * (runtime.world - 1)]
        self._sums = {name: list(pair) for name, pair in parts[runtime.rank].items()}
        self.seconds, self.steps = dict(state["seconds"]), state["steps"]
        self.rates = list(state.get("rates", []))  # not in early versions
        self._left_out_before = dict(state.get("left_out", {}))  # not in early versions
        self._skipped_before = list(state.get("skipped", []))


def _added(parts: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    """The sums and counts of all processes, by term."""
    names = {name for part in parts for name in part}
    own = {name: [part[name] for part in parts if name in part] for name in sorted(names)}
    return {
        name: [sum(column) for column in zip(*pairs, strict=True)] for name, pairs in own.items()
    }
