"""Builds the runs of a recipe before it trains the first: no mistake waits for its turn."""

from collections.abc import Callable, Sequence
from functools import partial

from segkd.config.recipe import PlannedRun
from segkd.config.schema import RecipeConfig, RunConfig
from segkd.engine.about_teachers import about_teachers
from segkd.engine.logging import display_print
from segkd.engine.match import foreseen
from segkd.engine.other_sets import OtherSets
from segkd.engine.run_folder import RunFolder
from segkd.engine.setup import Components
from segkd.engine.stand_in import stand_in, without_compile
from segkd.engine.trainer import Trainer
from segkd.engine.trial import on_trial
from segkd.errors import ConfigError, SegKDError
from segkd.faults import machine_faults
from segkd.runtime import Runtime

Assemble = Callable[[PlannedRun, RunConfig, Runtime], Components]


def rehearse(
    recipe: RecipeConfig, plan: Sequence[PlannedRun], assembled: Assemble, *, own_student: bool
) -> None:
    """Builds each run that is yet to be trained, untrained, and does nothing else.

    The first one is left out: it is built next anyway.

    Args:
        recipe: the recipe.
        plan: its runs in order.
        assembled: makes the components of a run from its config with stand-ins.
        own_student: the student is a network of the caller. Runs that depend on others cannot be
            tried then: no configuration describes what they would be trained from.

    Raises:
        SegKDError: see ``train_run``; names the run.
    """
    with machine_faults():
        todo = _unfinished(recipe, plan)
        first_of = {planned.name: planned for planned in reversed(todo)}
        tried = [one for one in first_of.values() if one is not todo[0]]
        tried = [one for one in tried if not (own_student and one.depends_on)]
        if tried and Runtime.rank_here() == 0:
            runs = "run" if len(tried) == 1 else "runs"
            display_print(f"Checking {len(tried)} further {runs} before the first is trained")
        for planned in sorted(tried, key=todo.index):
            try:
                _build(planned, without_compile(stand_in(planned, plan)), assembled)
            except SegKDError as error:
                raise error.at(f"runs.{planned.name}") from error


def _unfinished(recipe: RecipeConfig, plan: Sequence[PlannedRun]) -> list[PlannedRun]:
    """The runs without a summary. Raises ConfigError for folders that hold other runs."""
    if not plan:
        return []
    runtime_keys = plan[0].config.runtime
    runtime = Runtime.start(runtime_keys.device, runtime_keys.precision)

    def finished(planned: PlannedRun) -> bool:
        folder = RunFolder(foreseen(recipe, planned)[0], extend=not planned.depends_on)
        if folder.finished() is not None:
            return True
        folder.check_same()
        return False

    todo = []
    for planned in plan:
        try:
            # Other machines may not have the folder.
            if not runtime.on_main(partial(finished, planned)):
                runtime.on_main(partial(_require_unused, planned, plan))
                runtime.on_main(partial(_tell_replaced, planned, plan))
                todo.append(planned)
        except SegKDError as error:
            raise error.at(f"runs.{planned.name}") from error
    return todo


def _require_unused(planned: PlannedRun, plan: Sequence[PlannedRun]) -> None:
    """Refuses to train a finished run further from which others have learned already."""
    folder = RunFolder(planned.config)
    others = (other for other in plan if folder.path in other.depends_on)
    used = [other for other in others if RunFolder(other.config).last.exists()]
    if used and folder.was_finished():
        raise ConfigError(
            f"{folder.path} would be trained on to {planned.config.steps} steps, but "
            f"{used[0].config.out} has learned from it as it is. Undo the change, or choose "
            "another folder: out=runs/NAME"
        )


def _tell_replaced(planned: PlannedRun, plan: Sequence[PlannedRun]) -> None:
    """Warns before a run is trained anew from whose lost folder others have learned."""
    folder = RunFolder(planned.config)
    if folder.last.exists():
        return
    others = (RunFolder(other.config) for other in plan if folder.path in other.depends_on)
    used = [str(other.path) for other in others if other.last.exists() or other.was_finished()]
    if used:
        display_print(
            f"WARNING: {folder.path} is trained anew, but {', '.join(used)} learned from what was "
            "there before. If its weights come out differently, the recipe stops there: delete "
            "these folders to train them again as well"
        )


def _build(planned: PlannedRun, config: RunConfig, assembled: Assemble) -> None:
    """Makes the trainer of a run, which tries the losses on one batch."""
    runtime = Runtime.start(config.runtime.device, config.runtime.precision)

    def examined(trainer: Trainer) -> None:
        about_teachers(planned.config, trainer.parts, in_recipe=True)
        OtherSets(config, trainer.parts.val_set)

    on_trial(config, runtime, partial(assembled, planned), examined)
