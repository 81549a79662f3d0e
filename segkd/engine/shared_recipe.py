"""Trains the runs of a recipe in order; with `shared`, beside other commands in the same folder.

Each command trains the first run that may begin and that no other one trains. What one command
leaves unfinished, because it was stopped, another one resumes.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from segkd.config.match import exempt
from segkd.config.recipe import PlannedRun
from segkd.config.schema import RecipeConfig
from segkd.engine.lock import RunLock
from segkd.engine.logging import display_print
from segkd.engine.summary import Summary
from segkd.errors import FolderInUseError
from segkd.inference.stopping import stopped_with
from segkd.runtime import Runtime

WAIT = 5.0  # seconds between two looks at the runs of other commands
Train = Callable[[int, PlannedRun], Summary]


def train_all(
    recipe: RecipeConfig, plan: Sequence[PlannedRun], train: Train
) -> list[tuple[PlannedRun, Summary]]:
    """The summaries of all runs, in the order of the plan; returns when the last one is finished.

    Args:
        recipe: the recipe.
        plan: its runs, each after those that it depends on.
        train: trains a run, given its place in the plan, from 0; see ``train_run``.

    Raises:
        FolderInUseError: another process trains one of the runs, and the recipe is not `shared`.
        Interrupted: stopped while waiting.
        SegKDError: of ``train``.
    """
    if not recipe.shared:
        try:
            return [(planned, train(number, planned)) for number, planned in enumerate(plan)]
        except FolderInUseError as error:
            hint = "To train the runs of a recipe by several commands, give each shared=true"
            raise FolderInUseError(f"{error}. {hint}") from None
    keys = plan[0].config.runtime
    runtime = Runtime.start(keys.device, keys.precision)
    locks = [RunLock(planned.folder) for planned in plan]
    found: dict[int, Summary] = {}
    told: list[str] = []
    while len(found) < len(plan):
        ready = [
            number
            for number, planned in enumerate(plan)
            if number not in found and not _waits(recipe, planned, plan, found)
        ]
        for number in ready:
            if runtime.on_main(locks[number].looks_held):
                continue
            try:
                found[number] = train(number, plan[number])
            except FolderInUseError:  # another command was faster
                continue
            break
        else:
            waited = [(plan[number], locks[number]) for number in ready]
            told = _tell(waited, told) if runtime.is_main else told
            _wait()
    return [(planned, found[number]) for number, planned in enumerate(plan)]


@contextlib.contextmanager
def alone_in(folder: Path, recipe: RecipeConfig) -> Iterator[None]:
    """Within the context no other command of a `shared` recipe writes into ``folder``."""
    if not recipe.shared:
        yield
        return
    lock = RunLock(folder)
    while True:
        try:
            lock.acquire(lambda text: None)
            break
        except FolderInUseError:
            _wait()
    try:
        yield
    finally:
        lock.release()


def _waits(
    recipe: RecipeConfig, planned: PlannedRun, plan: Sequence[PlannedRun], found: dict[int, Summary]
) -> bool:
    """Whether a run needs one that is not finished yet, or the seconds of its baseline."""
    missing = [other for number, other in enumerate(plan) if number not in found]
    if any(other.folder in planned.depends_on for other in missing):
        return True
    matched = recipe.match is not None and exempt(recipe, planned.name) is None
    return matched and any(other.name == recipe.baseline for other in missing)


def _tell(waited: Sequence[tuple[PlannedRun, RunLock]], told: list[str]) -> list[str]:
    """Says once which runs are waited for, and which processes train them; returns these texts."""
    holders = [(planned, lock.holder()) for planned, lock in waited]
    texts = [f"{one.name}, seed {one.seed} ({holder})" for one, holder in holders if holder]
    if texts and texts != told:
        display_print(f"Waiting for what other commands train: {'; '.join(texts)}")
    return texts


def _wait() -> None:
    """Raises Interrupted after SIGINT or SIGTERM."""
    text = "while waiting for other commands. To go on, run the same command again"
    with stopped_with(lambda: text):
        time.sleep(WAIT)
