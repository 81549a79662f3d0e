"""Trains the runs of a recipe in order, and compares them."""

import copy
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn

from segkd.config.recipe import PlannedRun, expand
from segkd.config.schema import RecipeConfig, RunConfig
from segkd.engine.logging import display_print
from segkd.engine.match import Matcher
from segkd.engine.recipe_report import write_report
from segkd.engine.recipe_teacher import ON_STUDENTS_SET, facts_of_students
from segkd.engine.rehearsal import rehearse
from segkd.engine.run import train_run
from segkd.engine.setup import Components, assemble
from segkd.engine.shared_recipe import train_all
from segkd.engine.summary import Summary, score_of
from segkd.errors import ConfigError
from segkd.evaluation.results import ComparisonRow, peer_rows
from segkd.inference.student import opened
from segkd.models.network import Network
from segkd.runtime import Runtime


def run_recipe(
    recipe: RecipeConfig,
    *,
    student: Network | None = None,
    teachers: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains all runs that are not finished yet, then compares them.

    Args:
        recipe: the runs.
        student: a network of the caller that all runs train, each from these weights.
        teachers: networks of the caller, for runs that have methods but no `teachers:`.

    Returns:
        ``{"folder", "rows", "runs"}``: folder of the recipe, rows of the table, and the summary of
        each run by its folder.

    Raises:
        SegKDError, Interrupted: see ``train_run``; finished runs are not repeated later. What
            rules a run out is found before the first one is trained, and names the run. A run
            that another process trains is an error unless the recipe is `shared`.
    """
    plan = expand(recipe)
    is_main = Runtime.rank_here() == 0
    teacher_facts: dict[str, Summary] = {}
    matcher = Matcher(recipe, plan)

    def given(planned: PlannedRun) -> Mapping[str, Any] | None:
        return teachers if planned.config.methods and not planned.config.teachers else None

    def assembled(planned: PlannedRun, config: RunConfig, runtime: Runtime) -> Components:
        return assemble(config, runtime, student=copy.deepcopy(student), teachers=given(planned))

    rehearse(recipe, plan, assembled, own_student=student is not None)

    def trained(number: int, planned: PlannedRun) -> Summary:
        if is_main:
            display_print(f"[{number + 1}/{len(plan)}] {planned.name}, seed {planned.seed}")
        alone = not planned.depends_on  # else the runs it depends on would be extended as well
        summary = train_run(
            matcher.config(planned, partial(assembled, planned)),
            student=copy.deepcopy(student),
            teachers=given(planned),
            teacher_facts=teacher_facts,
            extend=alone,
        )
        matcher.finished(planned, summary)
        return summary

    summaries = train_all(recipe, plan, trained)
    rows = compare(recipe, summaries)
    if is_main:
        own = {**(teachers or {}), **_trained(student, plan)}
        folder = recipe_folder(recipe) / "report"
        write_report(recipe, summaries, rows, own, folder)
    return {
        "folder": str(recipe.out),
        "rows": [row.to_dict() for row in rows],
        "runs": {summary["name"]: summary for _, summary in summaries},
    }


def recipe_folder(recipe: RecipeConfig) -> Path:
    """The folder of a recipe's runs. Raises ConfigError if it has none."""
    if recipe.out is None:
        raise ConfigError("out: a recipe needs a folder. Add out=runs/my_recipe")
    return Path(recipe.out)


def compare(
    recipe: RecipeConfig, summaries: Sequence[tuple[PlannedRun, Summary]]
) -> list[ComparisonRow]:
    """One row for the teacher and one per run name over its seeds, in recipe order or by score.

    Scores are those of each run's last step, not of its best evaluation, which would favour runs
    that are evaluated more often. A teacher's run on another dataset has its score on the
    students', which its name says, and none if no student has learned from it.
    """
    rows = []
    name_of_score = summaries[0][1].get("score_name", "mIoU")
    outside = recipe.teacher if recipe.teacher not in recipe.runs else None
    if outside is not None and (known := _of_first_student(outside, summaries)):
        teacher = ComparisonRow(
            outside,
            [score_of(one) for one in _with_score(known)],
            known[0]["parameters"],
            known[0]["flops"],
            role="teacher",
            score_name=name_of_score,
        )
        rows.append(teacher)
    on_students_set = facts_of_students(recipe, summaries)
    roles: dict[str | None, Literal["teacher", "baseline"]] = {
        recipe.baseline: "baseline",
        recipe.teacher: "teacher",
    }
    for name in recipe.runs:
        own = [summary for planned, summary in summaries if planned.name == name]
        seeds = [planned.seed for planned, _ in summaries if planned.name == name]
        title, scored, cost = name, own, own[0]["student"]
        if name == recipe.teacher and on_students_set is not None:
            title, scored = f"{name}{ON_STUDENTS_SET}", _with_score(on_students_set)
            cost = (on_students_set or [cost])[0]
        rows.append(
            ComparisonRow(
                title,
                [score_of(facts) for facts in scored],
                cost["parameters"],
                cost["flops"],
                statistics.fmean(summary["seconds_per_step"] for summary in own),
                max(summary["peak_memory"] for summary in own),
                roles.get(name, ""),
                name_of_score,
                statistics.fmean(summary["steps"] for summary in own),
                recipe.match is not None,
                seeds if scored is own else (),
            )
        )
        rows += peer_rows(name, own, name_of_score, seeds)
    return sorted(rows, key=lambda row: row.rank, reverse=True) if recipe.sort else rows


def _of_first_student(
    teacher: str, summaries: Sequence[tuple[PlannedRun, Summary]]
) -> list[Summary]:
    """What the first run with this teacher says of it: once, or by seed if it differs by seed."""
    found = [(planned.name, s["teachers"].get(teacher)) for planned, s in summaries]
    first = next((name for name, facts in found if facts), None)
    own = [facts for name, facts in found if name == first and facts]
    return own if len({score_of(facts) for facts in own}) > 1 else own[:1]


def _with_score(found: Sequence[Summary]) -> list[Summary]:
    """The facts of teachers that have a score, which one without classes has not."""
    return [facts for facts in found if {"score", "miou"} & facts.keys()]


def _trained(student: Network | None, plan: Sequence[PlannedRun]) -> dict[str, nn.Module]:
    """The caller's network with the weights of each run, by the run's name; those of one seed."""
    if student is None:
        return {}
    return {one.name: opened(one.folder, copy.deepcopy(student)) for one in reversed(plan)}
