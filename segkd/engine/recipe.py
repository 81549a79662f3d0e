"""Several runs that feed each other, and the table, plot and pictures that they end in."""

import json
import math
from pathlib import Path

import numpy as np
import torch

from segkd.config.recipe import PlannedRun, expand
from segkd.config.schema import RecipeConfig
from segkd.engine import checkpoint
from segkd.engine.logging import display_print
from segkd.engine.run import train_run
from segkd.engine.runtime import Runtime
from segkd.engine.setup import open_dataset
from segkd.evaluation.report import ComparisonRow, write_table
from segkd.models.build import load_student
from segkd.models.teacher import build_teachers

PICTURES = 4


def run_recipe(recipe: RecipeConfig) -> dict:
    """Trains what is not finished yet, then compares.

    Returns:
        ``{"folder", "rows", "runs"}``: where the report lies, the table's rows, and the summary
        of each run by its folder.

    Raises:
        SegKDError, Interrupted: as ``train_run``; finished runs are not repeated afterwards.
    """
    plan = expand(recipe)
    is_main = Runtime.rank_here() == 0
    summaries: list[tuple[PlannedRun, dict]] = []
    for number, planned in enumerate(plan, start=1):
        if is_main:
            display_print(f"[{number}/{len(plan)}] {planned.name}, seed {planned.seed}")
        summaries.append((planned, train_run(planned.config)))
    rows = compare(recipe, summaries)
    if is_main:
        folder = recipe.out / "report"
        table = write_table(rows, folder, title=recipe.title, baseline=recipe.baseline)
        _draw(recipe, plan, rows, folder)
        display_print(table)
        display_print(f"Table, plot and pictures: {folder}")
    return {
        "folder": str(recipe.out),
        "rows": [row.to_dict() for row in rows],
        "runs": {summary["name"]: summary for _, summary in summaries},
    }


def compare(recipe: RecipeConfig, summaries: list[tuple[PlannedRun, dict]]) -> list[ComparisonRow]:
    """One row for the teacher and one per run name, its seeds together, in the recipe's order."""
    rows = []
    teacher = recipe.teacher
    found = [s["teachers"][teacher] for _, s in summaries if teacher in s["teachers"]]
    if teacher and teacher not in recipe.runs and found:
        facts = found[0]
        rows.append(
            ComparisonRow(
                teacher,
                [facts["miou"]],
                parameters=facts["parameters"],
                flops=facts["flops"],
                role="teacher",
            )
        )
    for name in recipe.runs:
        own = [summary for planned, summary in summaries if planned.name == name]
        roles = {recipe.teacher: "teacher", recipe.baseline: "baseline"}
        rows.append(
            ComparisonRow(
                name,
                [summary["miou"] for summary in own],
                parameters=own[0]["student"]["parameters"],
                flops=own[0]["student"]["flops"],
                seconds_per_step=float(np.mean([s["seconds_per_step"] for s in own])),
                peak_memory=max(s["peak_memory"] for s in own),
                role=roles.get(name, ""),
            )
        )
    return rows
