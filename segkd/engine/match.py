"""``match: seconds``: how many steps of a run take as long as the training of the baseline.

The seconds of a step are measured before the run on a trainer of its own, which is thrown away:
the run begins as if there had been none. What was found is written into the run's folder, so that
a resumed run, and all processes of it, have the same number of steps.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segkd.config.match import exempt, with_steps
from segkd.config.recipe import PlannedRun
from segkd.config.schema import RecipeConfig, RunConfig
from segkd.engine.logging import display_print
from segkd.engine.match_record import RECORD, Match, digest, folder_of, holding, renew
from segkd.engine.setup import Components, assemble
from segkd.engine.step_seconds import affordable, budget_rate, step_seconds
from segkd.engine.summary import Summary
from segkd.errors import ConfigError
from segkd.faults import machine_faults
from segkd.runtime import Runtime

LEAST_STEPS = 10  # with fewer, a schedule and a comparison mean nothing


class Matcher:
    """Gives the runs of a recipe their numbers of steps; does nothing without ``match``.

    Args:
        recipe: the recipe.
        plan: its runs in order, the baseline of a seed before those that are matched to it.

    Raises:
        ConfigError: without ``match``, a run that was matched would have other steps.
    """

    def __init__(self, recipe: RecipeConfig, plan: Sequence[PlannedRun]) -> None:
        self.recipe, self.plan = recipe, plan
        for planned in plan if recipe.match is None else ():
            _require_unmatched(planned.config)
        self.seconds: dict[str, float] = {}  # of the baseline's training, by its folder

    def finished(self, planned: PlannedRun, summary: Summary) -> None:
        """Notes how long a baseline took."""
        if self.recipe.match is not None and planned.name == self.recipe.baseline:
            self.seconds[self._within(planned)] = training_seconds(summary)

    def config(
        self, planned: PlannedRun, assembled: Callable[[RunConfig, Runtime], Components] = assemble
    ) -> RunConfig:
        """The run with the number of steps that it is to have.

        Args:
            planned: one of the runs.
            assembled: makes the components of a run, for those with networks of the caller.

        Raises:
            ConfigError: the run would have too few steps, or was matched to something else.
            SegKDError: see ``train_run``.
        """
        config = planned.config
        if self.recipe.match is None or exempt(self.recipe, planned.name) is not None:
            return config
        with machine_faults():
            runtime = Runtime.start(config.runtime.device, config.runtime.precision)
            found = runtime.on_main(lambda: self._known(planned))
            if found is None:
                measured = self._measured(planned, runtime, assembled)
                # Another command may have measured another seed meanwhile.
                found = runtime.on_main(lambda: self._known(planned) or renew(config, measured))
                if runtime.is_main:
                    display_print(found.about)
        return with_steps(config, found.steps)

    def _known(self, planned: PlannedRun) -> Match | None:
        """What an earlier call, or another seed of the run, has measured."""
        assert self.recipe.match is not None
        own = [one for one in self.plan if one.name == planned.name]
        for one in sorted(own, key=lambda other: other is not planned):
            found = holding(one.config)
            if found is None:
                continue
            # What `holding` returns of the run itself holds, also where the folder was moved.
            if one is not planned and found.measured not in ("", digest(planned.config)):
                continue
            self._require_same(one.folder, found, planned)
            return found if one is planned else renew(planned.config, found)
        return None

    def _require_same(self, folder: Path, found: Match, planned: PlannedRun) -> None:
        assert self.recipe.match is not None
        budget = self.seconds.get(found.baseline)
        now = (self.recipe.match.seconds, planned.config.steps)
        changes = [
            f"match.seconds: {found.factor:g} -> {now[0]:g}" if found.factor != now[0] else "",
            f"steps: {found.configured} -> {now[1]}" if found.configured != now[1] else "",
        ]
        if budget is not None and not math.isclose(budget * found.factor, found.budget):
            before = found.budget / found.factor
            changes.append(f"seconds of {found.baseline}: {before:.4g} -> {budget:.4g}")
        if any(changes):
            lines = "\n  ".join(line for line in changes if line)
            raise ConfigError(
                f"{folder} was matched to something else:\n  {lines}\nUndo the change to resume "
                "that run, delete its folder to measure anew, or choose another folder: "
                "out=runs/NAME"
            )

    def _measured(
        self,
        planned: PlannedRun,
        runtime: Runtime,
        assembled: Callable[[RunConfig, Runtime], Components],
    ) -> Match:
        assert self.recipe.match is not None
        baselines = [one for one in self.plan if one.name == self.recipe.baseline]
        baseline = next((one for one in baselines if one.seed == planned.seed), baselines[0])
        within, factor = self._within(baseline), self.recipe.match.seconds
        budget = runtime.from_main(self.seconds[within] * factor)
        rates = runtime.from_main(step_seconds(planned.config, runtime, assembled))
        steps = affordable(planned.config, rates, budget)
        if steps < LEAST_STEPS:
            rate = budget_rate(planned.config, rates)
            more = math.ceil(2 * LEAST_STEPS * rate / budget * baseline.config.steps)
            raise ConfigError(
                f"runs.{planned.name}: a step takes {rate:.3g} s, so that the "
                f"{budget / factor:.3g} s of '{self.recipe.baseline}' times {factor:g} are {steps} "
                f"steps: at least {LEAST_STEPS} are needed. Choose another folder and more steps "
                f"for the baseline, e.g. out=runs/NAME runs.{self.recipe.baseline}.steps={more}, "
                "or raise match.seconds there"
            )
        rate = budget_rate(with_steps(planned.config, steps), rates)
        own = digest(planned.config)
        return Match(steps, rate, budget, factor, within, planned.config.steps, own)

    def _within(self, planned: PlannedRun) -> str:
        assert self.recipe.out is not None  # `expand` has checked it
        return Path(os.path.relpath(planned.folder, self.recipe.out)).as_posix()


def foreseen(recipe: RecipeConfig, planned: PlannedRun) -> tuple[RunConfig, str]:
    """A run as it will be trained, and a sentence about its steps; empty without ``match``.

    Args:
        recipe: the recipe.
        planned: one of its runs; with its configured steps if they have not been measured yet.

    Raises:
        ConfigError: the record in its folder is damaged.
    """
    config = planned.config
    if recipe.match is None:
        return config, ""
    why = exempt(recipe, planned.name)
    if why is not None:
        return config, f"{config.steps}, as configured: it is not matched ({why})"
    found = holding(config)
    if found is not None:
        return with_steps(config, found.steps), f"{found.steps}, as {RECORD} in its folder says"
    factor = "" if recipe.match.seconds == 1 else f"{recipe.match.seconds:g} times "
    return config, (
        f"measured before the run, to take {factor}the seconds of '{recipe.baseline}'; the "
        f"configured {config.steps} only say what warm-ups, `start` and `eval.every` are shares of"
    )


def training_seconds(summary: Mapping[str, Any]) -> float:
    """The seconds that a run's training took: its median step times its steps.

    The median is over the lines of its log. Evaluations, checkpoints and the start do not count.
    """
    rate = summary.get("median_seconds_per_step") or summary["seconds_per_step"]
    return float(rate * summary["steps"])


def _require_unmatched(config: RunConfig) -> None:
    """Refuses a run that was matched, and now would have other steps than it began with."""
    found = holding(config)
    if found is not None and found.steps != config.steps:
        raise ConfigError(
            f"{folder_of(config)} was matched to {found.baseline}: {found.steps} steps, not "
            f"{config.steps}. To go on, add match='{{seconds: {found.factor:g}}}'; to train "
            "without it, choose another folder: out=runs/NAME"
        )
