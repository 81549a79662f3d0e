"""The teacher of a recipe as its students see it, if its run was trained on another dataset."""

from collections.abc import Sequence

from segkd.config.recipe import PlannedRun
from segkd.config.schema import RecipeConfig
from segkd.data.base import same_validation
from segkd.engine.summary import Summary

ON_STUDENTS_SET = " (students' set)"  # after its name where a score or picture is not of its own


def students_entries(
    recipe: RecipeConfig, plan: Sequence[PlannedRun]
) -> dict[str, tuple[PlannedRun, str]] | None:
    """The entries of `teachers:` that show the recipe's teacher on the students' dataset.

    Args:
        recipe: the runs.
        plan: all of them.

    Returns:
        A student and its entry by the folder of the teacher's run, empty if no student has one;
        None if the teacher is no run, or was scored on the students' dataset itself.
    """
    made = {str(one.config.out): one for one in plan if one.name == recipe.teacher}
    taught = [
        (one, entry, teacher.checkpoint)
        for one in plan
        for entry, teacher in one.config.teachers.items()
        if teacher.checkpoint in made
    ]
    alone = [one for one in plan if one.name == recipe.baseline]
    student = next(iter([*alone, *(one for one, _, _ in taught)]), None)
    if not made or student is None:
        return None
    if same_validation(next(iter(made.values())).config.data, student.config.data):
        return None
    found: dict[str, tuple[PlannedRun, str]] = {}
    for one, entry, folder in taught:
        # An assistant may have learned on the teacher's dataset.
        if folder is not None and same_validation(one.config.data, student.config.data):
            found.setdefault(folder, (one, entry))
    return found


def facts_of_students(
    recipe: RecipeConfig, summaries: Sequence[tuple[PlannedRun, Summary]]
) -> list[Summary] | None:
    """What the students' summaries say of the recipe's teacher, one per run of it.

    Args:
        recipe: the runs.
        summaries: of all of them.

    Returns:
        None as ``students_entries``.
    """
    entries = students_entries(recipe, [planned for planned, _ in summaries])
    if entries is None:
        return None
    by_folder = {planned.config.out: summary for planned, summary in summaries}
    found = [by_folder[one.config.out]["teachers"].get(entry) for one, entry in entries.values()]
    return [facts for facts in found if facts]
