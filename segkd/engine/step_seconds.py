"""The seconds that a run's steps take, and the number of steps that fits into a budget of them."""

import itertools
import statistics
from collections.abc import Callable, Mapping

from segkd import registry
from segkd.config.match import with_steps
from segkd.config.schema import RunConfig
from segkd.engine.optim import first_step, preparation
from segkd.engine.setup import Components, assemble
from segkd.engine.trainer import Trainer
from segkd.engine.trial import on_trial
from segkd.runtime import Runtime

WARMUP = 3  # steps before measuring, in which workers start and kernels are chosen
BLOCKS, BLOCK = 5, 4  # the seconds of a step are the median over so many blocks of so many steps
_ROUNDS = 50  # until the number of steps fits the phases that follow from it

Phase = tuple[str, ...]  # what is at work in a step, e.g. ("kd", "ft beforehand")


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
