"""``match: seconds``: how many steps of a run take as long as the training of the baseline.

The seconds of a step are measured before the run on a trainer of its own, which is thrown away:
the run begins as if there had been none. What was found is written into the run's folder, so that
a resumed run, and all processes of it, have the same number of steps.
"""

import hashlib
import itertools
import json
import math
import os
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segkd import registry
from segkd.config.load import RESUMABLE_KEYS, comparable
from segkd.config.match import exempt, with_steps
from segkd.config.recipe import PlannedRun
from segkd.config.schema import RecipeConfig, RunConfig
from segkd.engine.logging import display_print
from segkd.engine.optim import first_step, preparation
from segkd.engine.setup import Components, assemble
from segkd.engine.summary import Summary
from segkd.engine.trainer import Trainer
from segkd.engine.trial import on_trial
from segkd.errors import ConfigError
from segkd.faults import machine_faults, no_space
from segkd.files import write_text
from segkd.runtime import Runtime
from segkd.texts import json_text

RECORD = "match.json"
WARMUP = 3  # steps before measuring, in which workers start and kernels are chosen
BLOCKS, BLOCK = 5, 4  # the seconds of a step are the median over so many blocks of so many steps
LEAST_STEPS = 10  # with fewer, a schedule and a comparison mean nothing
_ROUNDS = 50  # until the number of steps fits the phases that follow from it

Phase = tuple[str, ...]  # what is at work in a step, e.g. ("kd", "ft beforehand")


@dataclass(frozen=True)
class Match:
    """What a run was matched to, as its folder's match.json has it.

    Attributes:
        steps: of the run.
        seconds_per_step: expected mean over the run.
        budget: seconds of training that the run gets.
        factor: ``match.seconds`` of the recipe.
        baseline: folder of the baseline's run, within the recipe's.
        configured: steps that the recipe says.
        measured: digest of the run whose step was measured; empty in records of version 0.1.
    """

    steps: int
    seconds_per_step: float
    budget: float
    factor: float
    baseline: str
    configured: int
    measured: str = ""

    @property
    def about(self) -> str:
        """A line for the terminal."""
        times = "" if self.factor == 1 else f", {self.factor:g} times those of {self.baseline}"
        return (
            f"match: {self.seconds_per_step:.3g} s/step, so {self.steps} steps (configured: "
            f"{self.configured}) in {self.budget:.4g} s" + (times or f", as {self.baseline}")
        )


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


def phases(config: RunConfig) -> list[tuple[range, Phase]]:
    """The steps of a run (0-based) by what is at work in them, in order.

    A method costs nothing before its `start`; in the phase of ``Method.preparation_steps`` it
    costs something else than later.
    """
    total, cuts = config.steps, {0, config.steps}
    methods = {
        name: registry.methods.get(entry.method or name)(entry)
        for name, entry in config.methods.items()
    }
    starts = {name: first_step(method, total) for name, method in methods.items()}
    before = {name: preparation(method, total) or range(0) for name, method in methods.items()}
    for name in methods:
        cuts |= {starts[name], before[name].start, before[name].stop}
    edges = sorted(cut for cut in cuts if cut <= total)
    return [
        (
            range(begin, end),
            (
                *(name for name in methods if begin >= starts[name]),
                *(f"{name} beforehand" for name in methods if begin in before[name]),
            ),
        )
        for begin, end in itertools.pairwise(edges)
    ]


def step_seconds(
    config: RunConfig,
    runtime: Runtime,
    assembled: Callable[[RunConfig, Runtime], Components] = assemble,
) -> dict[Phase, float]:
    """Seconds of a step in each phase of a run, measured on a trainer that is thrown away.

    Args:
        config: the run; no query of a black box is spent.
        runtime: of this process.
        assembled: see ``Matcher.config``.

    Raises:
        SegKDError: see ``train_run``.
    """

    def rates(trainer: Trainer) -> dict[Phase, float]:
        found: dict[Phase, float] = {}
        for steps, phase in phases(config):
            if phase not in found:
                found[phase] = _median_seconds(trainer, steps)
        return found

    return on_trial(config, runtime, assembled, rates)


def _median_seconds(trainer: Trainer, steps: range) -> float:
    """The median over blocks of a step's seconds within ``steps``; they are repeated if few."""
    trainer.step = steps.start
    left = trainer.config.steps - steps.start  # as many batches has its loader
    warmup = min(WARMUP, left // 2)
    block = max(1, min(BLOCK, (left - warmup) // BLOCKS))
    found: list[float] = []
    training = trainer.steps()
    try:
        for done, _ in enumerate(training, start=1):
            if trainer.step >= steps.stop:
                trainer.step = steps.start
            if done == warmup:
                trainer.timer.take()
            elif done > warmup and (done - warmup) % block == 0:
                found.append(sum(trainer.timer.take().values()) / block)
            if len(found) == BLOCKS or done == left:
                break
    finally:
        training.close()
    return statistics.median(found)


def budget_rate(config: RunConfig, rates: Mapping[Phase, float]) -> float:
    """The mean seconds of a step over a run, given those of each phase."""
    known = phases(config)
    usual = max(rates.values())  # of a phase that only another number of steps has
    return sum(len(steps) * rates.get(phase, usual) for steps, phase in known) / config.steps


def affordable(config: RunConfig, rates: Mapping[Phase, float], budget: float) -> int:
    """The largest number of steps that takes at most ``budget`` seconds; 0 if none does.

    The length of a phase depends on the number of steps, so the number is sought in rounds.
    """
    steps = config.steps
    for _ in range(_ROUNDS):
        found = int(budget / budget_rate(with_steps(config, max(steps, 1)), rates) + 1e-9)
        if found == steps:
            break
        steps = found
    return steps


def load(folder: Path) -> Match | None:
    """The record of a run's folder; None if it has none. Raises ConfigError if it is damaged."""
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        return Match(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} is damaged: {error}. It says how many steps this run has. Delete {folder} to "
            "measure and train anew"
        ) from error


def digest(config: RunConfig) -> str:
    """Of all that the time of a step may depend on: one for all seeds of a run."""
    values = comparable(config, (*RESUMABLE_KEYS, "seed", "steps"))
    text = re.sub(r"\bseed\d+\b", "seed", json_text(dict(sorted(values.items()))))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def holding(config: RunConfig) -> Match | None:
    """The record of a run, unless the run was corrected since, before its first checkpoint.

    A step of what it is now takes another time. Raises ConfigError like ``load``.
    """
    found, folder = load(_folder(config)), _folder(config)
    begun = (folder / "checkpoints" / "last.pt").exists()
    return found if begun or found is None or found.measured in ("", digest(config)) else None


def _require_unmatched(config: RunConfig) -> None:
    """Refuses a run that was matched, and now would have other steps than it began with."""
    found = holding(config)
    if found is not None and found.steps != config.steps:
        raise ConfigError(
            f"{_folder(config)} was matched to {found.baseline}: {found.steps} steps, not "
            f"{config.steps}. To go on, add match='{{seconds: {found.factor:g}}}'; to train "
            "without it, choose another folder: out=runs/NAME"
        )


def renew(config: RunConfig, match: Match) -> Match:
    """``store``, also in place of a record that does not hold any more."""
    if holding(config) is None:
        (_folder(config) / RECORD).unlink(missing_ok=True)
    return store(_folder(config), match)


def store(folder: Path, match: Match) -> Match:
    """Writes the record, unless there is one; returns the one that is there.

    Raises:
        MachineError: it cannot be written.
    """
    path = folder / RECORD
    scratch = path.with_name(f".{RECORD}.{os.getpid()}")
    try:
        write_text(scratch, json_text(asdict(match), indent=2) + "\n")
        try:
            os.link(scratch, path)  # fails if another command has written it meanwhile
        except FileExistsError:
            return load(folder) or match
        except OSError:  # a file system without links
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        raise no_space(path, error) from error
    return match


def _folder(config: RunConfig) -> Path:
    assert config.out is not None  # given by ``expand``
    return Path(config.out)
