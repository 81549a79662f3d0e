"""Whether a run may go on to more steps than it was configured for."""

from pathlib import Path

from segkd import registry
from segkd.config.schema import RunConfig
from segkd.engine.optim import lr_share, weight_share
from segkd.methods.base import Method


def refusal(
    old: RunConfig, new: RunConfig, folder: Path, *, alone: bool, done: int | None
) -> str | None:
    """Why not, and what to type instead; None if the steps it has done would have been the same.

    Args:
        old, new: configurations that differ in ``steps`` only.
        folder: of the run.
        alone: no other run of a recipe feeds it, which would be extended, too.
        done: steps of its checkpoint; None: as many as it was configured for.
    """
    done = old.steps if done is None else done
    apart = f"choose another folder: out=runs/NAME steps={new.steps}"
    if new.steps < done:
        return f"it has done {done} steps already. To train fewer, {apart}"
    if not alone:
        return f"it learns from another run of its recipe, which would change. Instead {apart}"
    longer = (
        f"To train longer, take over its student: init_from={folder} out=runs/NAME "
        f"steps={new.steps - done} (optimiser and schedule start anew), or {apart}"
    )
    if _rates(old, old.steps, done) != _rates(old, new.steps, done):
        return f"its schedule '{old.schedule.name}' depends on the number of steps. {longer}"
    for name, entry in old.methods.items():
        method = registry.methods.get(entry.method or name)
        if _weights(entry, old.steps, done) != _weights(entry, new.steps, done):
            return f"the weight of methods.{name} depends on the number of steps. {longer}"
        if method.finish is not Method.finish:
            return f"methods.{name} changes the student at the end of a run. {longer}"
    return None


def _rates(config: RunConfig, total: int, done: int) -> list[float]:
    return [lr_share(config.schedule, step, total) for step in range(done)]


def _weights(entry: object, total: int, done: int) -> list[float]:
    return [weight_share(entry, step, total) for step in range(done)]
