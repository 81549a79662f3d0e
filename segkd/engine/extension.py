"""Whether a finished or interrupted run may be extended to more steps."""

from collections.abc import Callable, Collection
from pathlib import Path

from segkd import registry
from segkd.config.schema import RunConfig
from segkd.engine.optim import adapter_share, first_step, lr_share, weight_share
from segkd.methods.base import Method


def refusal(
    old: RunConfig,
    new: RunConfig,
    folder: Path,
    *,
    alone: bool,
    done: int | None,
    layered: Callable[[], Collection[str]] = tuple,
) -> str | None:
    """Why a run cannot be extended, and what to type instead.

    Args:
        old, new: configurations that differ in ``steps`` only.
        folder: folder of the run.
        alone: whether it depends on no other run of a recipe, which would be extended as well.
        done: steps of its checkpoint; None: as many as it was configured for.
        layered: gives the entries with layers of their own, which learn alone in the first steps.

    Returns:
        None if the steps done so far would have been the same.
    """
    done = old.steps if done is None else done
    apart = f"choose another folder: out=runs/NAME steps={new.steps}"
    if new.steps < done:
        return f"it has done {done} steps already. To train fewer, {apart}"
    if not alone:
        return f"it depends on another run of its recipe, which would change. Instead {apart}"
    longer = (
        f"To train longer, start from its student: init_from={folder} out=runs/NAME "
        f"steps={new.steps - done} (optimiser and schedule start anew), or {apart}"
    )
    if _rates(old, old.steps, done) != _rates(old, new.steps, done):
        return f"its schedule '{old.schedule.name}' depends on the number of steps. {longer}"
    for name, entry in old.methods.items():
        method = registry.methods.get(entry.method or name)
        if _weights(method(entry), old.steps, done) != _weights(method(entry), new.steps, done):
            return f"the weight of methods.{name} depends on the number of steps. {longer}"
        if _starts(method(entry), old.steps, done) == _starts(method(entry), new.steps, done):
            continue
        if name in layered():
            return (
                f"how long the layers of methods.{name} learn alone depends on the number of "
                f"steps, unless `adapter_warmup` is given. {longer}"
            )
    return None


def _rates(config: RunConfig, total: int, done: int) -> list[float]:
    return [lr_share(config.schedule, step, total) for step in range(done)]


def _starts(method: Method, total: int, done: int) -> list[float]:
    start = first_step(method, total)
    return [adapter_share(method.config, step, total, start) for step in range(start, done)]


def _weights(method: Method, total: int, done: int) -> list[float]:
    """Of the steps done: the weight, preceded by how many of them prepared the method."""
    start = first_step(method, total)
    prepared = min(method.preparation_steps(total) or 0, done)
    return [prepared, *(weight_share(method.config, step, total, start) for step in range(done))]
