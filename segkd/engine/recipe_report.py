"""What a recipe writes at its end: tables, plots and an image sheet."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from segkd.config.recipe import PlannedRun
from segkd.config.schema import RecipeConfig
from segkd.engine.assistants import lessons
from segkd.engine.logging import display_print
from segkd.engine.recipe_pictures import draw_pictures
from segkd.engine.recipe_teacher import facts_of_students
from segkd.engine.shared_recipe import alone_in
from segkd.engine.summary import Summary
from segkd.evaluation.assistants import assistants_plot, write_lessons
from segkd.evaluation.label_plot import LabelPoint, labels_plot, write_labels
from segkd.evaluation.lane_tables import category_table
from segkd.evaluation.other_sets import other_row, write_other_table
from segkd.evaluation.plots import comparison_plot
from segkd.evaluation.results import ComparisonRow, score_name, write_table
from segkd.files import write_text

_OF_SOME = (  # files that only some recipes have
    *("assistants.png", "assistants.csv", "labels.png", "labels.csv"),
    *("categories.txt", "categories.md"),
    *("others.txt", "others.md", "others.csv", "others.json"),
)


def write_report(
    recipe: RecipeConfig,
    summaries: Sequence[tuple[PlannedRun, Summary]],
    rows: Sequence[ComparisonRow],
    own: Mapping[str, nn.Module],
    folder: Path,
) -> None:
    """Writes tables, plots and pictures into the recipe's folder, and prints the tables.

    Args:
        recipe: the runs.
        summaries: of all runs, in the order of the plan.
        rows: of the table.
        own: networks of the caller by run or teacher, which no file describes.
        folder: of the tables.
    """
    with alone_in(folder, recipe):
        for name in _OF_SOME:  # an earlier call may have had other runs
            (folder / name).unlink(missing_ok=True)
        table = write_table(rows, folder, title=recipe.title, baseline=recipe.baseline)
        comparison_plot(rows, folder / "comparison.png", title=recipe.title)
        _draw_assistants(recipe, summaries, rows, folder)
        _draw_labels(recipe, summaries, rows, folder)
        plan = [planned for planned, _ in summaries]
        draw_pictures(recipe, plan, rows, folder / "pictures.png", own)
        display_print(table)
        _write_categories(recipe, summaries, folder)
        _write_others(recipe, summaries, rows, folder)
    display_print(f"Table, plot and pictures: {folder}")


def _write_categories(
    recipe: RecipeConfig, summaries: Sequence[tuple[PlannedRun, Summary]], folder: Path
) -> None:
    """A second table for datasets with image categories, such as CULane."""
    runs: dict[str, list[Summary]] = {}
    for planned, summary in summaries:
        if summary.get("categories"):
            runs.setdefault(planned.name, []).append(summary)
    if runs:
        table = category_table(runs, title="By category")
        write_text(folder / "categories.txt", table.text())
        write_text(folder / "categories.md", table.markdown())
        display_print(table)


def _write_others(
    recipe: RecipeConfig,
    summaries: Sequence[tuple[PlannedRun, Summary]],
    rows: Sequence[ComparisonRow],
    folder: Path,
) -> None:
    """A further table if runs were scored on sets that they have not seen."""
    found = []
    for row in rows:
        own = [summary for planned, summary in summaries if planned.name == row.name]
        outside = [s["teachers"][row.name] for _, s in summaries if row.name in s["teachers"]]
        if row.role == "teacher" and not own:
            outside = outside or facts_of_students(recipe, summaries) or []
        facts = own or (outside[:1] if row.role == "teacher" else [])
        if facts:
            found.append(other_row(row.name, facts, row.role))
    table = write_other_table(
        found, folder, score_name=score_name(rows), title=f"{recipe.title}: other sets"
    )
    if table is not None:
        display_print(table)


def _draw_assistants(
    recipe: RecipeConfig,
    summaries: Sequence[tuple[PlannedRun, Summary]],
    rows: Sequence[ComparisonRow],
    folder: Path,
) -> None:
    """Plot and numbers of teacher assistants, if the recipe has any."""
    baseline = next((row for row in rows if row.role == "baseline"), None)
    students = {planned.name: planned.config.student for planned, _ in summaries}
    student = students[baseline.name] if baseline else None
    found = lessons(((p.name, p.config, summary) for p, summary in summaries), student)
    if not found:
        return
    assistants_plot(
        found,
        folder / "assistants.png",
        title=recipe.title,
        baseline=baseline,
        score_name=rows[0].score_name,
    )
    write_lessons(found, folder / "assistants.csv")


def _draw_labels(
    recipe: RecipeConfig,
    summaries: Sequence[tuple[PlannedRun, Summary]],
    rows: Sequence[ComparisonRow],
    folder: Path,
) -> None:
    """Plot and numbers of scores against labelled images, for a recipe with `series`."""
    images = {p.name: summary["training_images"]["labelled"] for p, summary in summaries}
    points = {
        row.name: LabelPoint(row.name, images[row.name], row.scores)
        for row in rows
        if row.name in images
    }
    series = {
        title: [points[name] for name in names if name in points]
        for title, names in recipe.series.items()
    }
    series = {title: own for title, own in series.items() if own}
    if series:
        teacher = next((row for row in rows if row.role == "teacher"), None)
        labels_plot(
            series,
            folder / "labels.png",
            title=recipe.title,
            teacher=teacher,
            score_name=rows[0].score_name,
        )
        write_labels(series, folder / "labels.csv")
