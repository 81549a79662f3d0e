"""Trains the runs of a recipe in order, and compares them: table, plot and image sheet."""

import copy
import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from segkd.config.recipe import PlannedRun, expand
from segkd.config.schema import RecipeConfig, RunConfig
from segkd.data.base import Dataset, Sample
from segkd.data.lane_base import is_lane_set
from segkd.data.loader import eval_loader
from segkd.data.writing import write_image
from segkd.engine.assistants import lessons
from segkd.engine.logging import display_print
from segkd.engine.match import Matcher
from segkd.engine.rehearsal import rehearse
from segkd.engine.run import train_run
from segkd.engine.setup import Components, assemble, open_dataset
from segkd.engine.summary import Summary, score_of
from segkd.errors import ConfigError
from segkd.evaluation.assistants import assistants_plot, write_lessons
from segkd.evaluation.lane_pictures import lane_pictures
from segkd.evaluation.lane_tables import category_table
from segkd.evaluation.other_sets import other_row, write_other_table
from segkd.evaluation.plots import comparison_plot
from segkd.evaluation.results import ComparisonRow, peer_rows, score_name, write_table
from segkd.files import write_text
from segkd.inference.student import opened
from segkd.inference.views import label_maps
from segkd.models.build import network_from_file
from segkd.models.network import Network
from segkd.models.teacher import build_teachers
from segkd.ops.mode import eval_mode
from segkd.runtime import Runtime
from segkd.viz.overlay import comparison_sheet

PICTURES = 6  # images on the sheet
COLUMNS = 3  # networks on the sheet: teacher, baseline, and the best of the other students


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
            rules a run out is found before the first one is trained, and names the run.
    """
    plan = expand(recipe)
    is_main = Runtime.rank_here() == 0
    summaries: list[tuple[PlannedRun, Summary]] = []
    teacher_facts: dict[str, Summary] = {}
    matcher = Matcher(recipe, plan)

    def given(planned: PlannedRun) -> Mapping[str, Any] | None:
        return teachers if planned.config.methods and not planned.config.teachers else None

    def assembled(planned: PlannedRun, config: RunConfig, runtime: Runtime) -> Components:
        return assemble(config, runtime, student=copy.deepcopy(student), teachers=given(planned))

    rehearse(recipe, plan, assembled, own_student=student is not None)
    for number, planned in enumerate(plan, start=1):
        if is_main:
            display_print(f"[{number}/{len(plan)}] {planned.name}, seed {planned.seed}")
        alone = not planned.depends_on  # else the runs it depends on would be extended as well
        summary = train_run(
            matcher.config(planned, partial(assembled, planned)),
            student=copy.deepcopy(student),
            teachers=given(planned),
            teacher_facts=teacher_facts,
            extend=alone,
        )
        matcher.finished(planned, summary)
        summaries.append((planned, summary))
    rows = compare(recipe, summaries)
    if is_main:
        own: dict[str, nn.Module] = {**(teachers or {})}
        if student is not None:
            own |= {one.name: _trained(student, one) for one in reversed(plan)}
        _write_report(recipe, summaries, rows, own)
    return {
        "folder": str(recipe.out),
        "rows": [row.to_dict() for row in rows],
        "runs": {summary["name"]: summary for _, summary in summaries},
    }


def _write_report(
    recipe: RecipeConfig,
    summaries: Sequence[tuple[PlannedRun, Summary]],
    rows: Sequence[ComparisonRow],
    own: Mapping[str, nn.Module],
) -> None:
    """Writes tables, plots and pictures into the recipe's folder, and prints the tables.

    Args:
        recipe: the runs.
        summaries: of all runs, in the order of the plan.
        rows: of the table.
        own: networks of the caller by run or teacher, which no file describes.
    """
    folder = recipe_folder(recipe) / "report"
    table = write_table(rows, folder, title=recipe.title, baseline=recipe.baseline)
    comparison_plot(rows, folder / "comparison.png", title=recipe.title)
    _draw_assistants(recipe, summaries, rows, folder)
    plan = [planned for planned, _ in summaries]
    draw_pictures(recipe, plan, rows, folder / "pictures.png", own)
    display_print(table)
    _write_categories(recipe, summaries, folder)
    _write_others(recipe, summaries, rows, folder)
    display_print(f"Table, plot and pictures: {folder}")


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
    that are evaluated more often.
    """
    rows = []
    name_of_score = summaries[0][1].get("score_name", "mIoU")
    outside = recipe.teacher if recipe.teacher not in recipe.runs else None
    for _, summary in summaries:
        if outside is not None and outside in summary["teachers"]:
            facts = summary["teachers"][outside]
            teacher = ComparisonRow(
                outside,
                [score_of(facts)] if {"score", "miou"} & facts.keys() else [],
                facts["parameters"],
                facts["flops"],
                role="teacher",
                score_name=name_of_score,
            )
            rows.append(teacher)
            break
    roles: dict[str | None, Literal["teacher", "baseline"]] = {
        recipe.baseline: "baseline",
        recipe.teacher: "teacher",
    }
    for name in recipe.runs:
        own = [summary for planned, summary in summaries if planned.name == name]
        rows.append(
            ComparisonRow(
                name,
                [score_of(summary) for summary in own],
                own[0]["student"]["parameters"],
                own[0]["student"]["flops"],
                statistics.fmean(summary["seconds_per_step"] for summary in own),
                max(summary["peak_memory"] for summary in own),
                roles.get(name, ""),
                name_of_score,
                statistics.fmean(summary["steps"] for summary in own),
                recipe.match is not None,
            )
        )
        rows += peer_rows(name, own, name_of_score)
    return sorted(rows, key=_order, reverse=True) if recipe.sort else rows


def _order(row: ComparisonRow) -> float:
    """The score by which rows are sorted; those without one are last."""
    return row.mean if math.isfinite(row.mean) else -math.inf


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
    student = recipe.runs[baseline.name].config.student if baseline else None
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


def draw_pictures(
    recipe: RecipeConfig,
    plan: Sequence[PlannedRun],
    rows: Sequence[ComparisonRow],
    path: Path,
    given: Mapping[str, nn.Module] | None = None,
) -> None:
    """Writes a sheet of evaluation images: label, teacher, baseline, best distilled student.

    Args:
        recipe, plan, rows: of the runs.
        path: of the image.
        given: networks by row, that no configuration can build.
    """
    given = given or {}
    config = next((p for p in plan if not p.once), plan[0]).config
    dataset = open_dataset(config, config.data.val_split)
    spread = np.linspace(0, len(dataset) - 1, min(PICTURES, len(dataset)))
    chosen = [int(index) for index in spread.round()]
    # A teacher without a score, a backbone or a box with a budget, has no label maps here.
    shown = [row for row in rows if row.role and (row.scores or row.role != "teacher")]
    students = [row for row in rows if not row.role and row.name in recipe.runs]
    others = sorted(students, key=lambda row: row.mean, reverse=True)
    shown += others[: COLUMNS - len(shown)]
    networks = {
        _title(row): given.get(row.name) or _network(row, recipe, plan, dataset) for row in shown
    }
    if is_lane_set(dataset) and len(dataset.classes) > 2:  # else lanes have no identity: label maps
        sheet = lane_pictures(dataset, chosen, networks, config.eval, recipe.title)
        write_image(path, sheet)
        return
    images, labels = [], []
    maps: dict[str, list[np.ndarray]] = {title: [] for title in networks}
    for batch, _ in eval_loader(Picked(dataset, chosen)):
        images.append(batch.images[0].permute(1, 2, 0).numpy())
        assert batch.labels is not None  # evaluation images have labels
        labels.append(batch.labels[0].numpy())
        height, width = batch.labels.shape[1:]
        for title, network in networks.items():
            with eval_mode(network):
                found = label_maps(network, batch.images, (height, width))
            maps[title].append(found[0].numpy())
    sheet = comparison_sheet(
        images,
        labels,
        maps,
        dataset.palette,
        dataset.classes,
        title=recipe.title,
        compared=_compared(shown),
    )
    write_image(path, sheet)


class Picked(Dataset):
    """Some images of a dataset.

    Args:
        dataset: the dataset.
        indices: positions of the images in it.
    """

    def __init__(self, dataset: Dataset, indices: Sequence[int]) -> None:
        super().__init__(dataset.config, dataset.split)
        self.classes, self.palette = dataset.classes, dataset.palette
        self.ignore_index = dataset.ignore_index
        self.dataset, self.indices = dataset, [int(index) for index in indices]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Sample:
        return self.dataset.read(self.indices[index])


def _trained(student: Network, planned: PlannedRun) -> Network:
    """The caller's network with the weights of a run."""
    assert planned.config.out is not None  # given by ``expand``
    return opened(planned.config.out, copy.deepcopy(student))


def _compared(rows: Sequence[ComparisonRow]) -> tuple[str, str] | None:
    """Columns of the best distilled student and of the baseline, else of the teacher."""
    student = next((row for row in rows if not row.role), None)
    others = {row.role: row for row in rows if row.role}
    reference = others.get("baseline") or others.get("teacher")
    return (_title(student), _title(reference)) if student and reference else None


def _title(row: ComparisonRow) -> str:
    return f"{row.name}\n{row.score_name} {100 * row.mean:.1f}"


def _network(
    row: ComparisonRow, recipe: RecipeConfig, plan: Sequence[PlannedRun], data: Dataset
) -> nn.Module:
    """The network of a row: the student of the first seed, or a teacher outside of the recipe."""
    for planned in plan:
        if planned.name == row.name:
            assert planned.config.out is not None  # given by ``expand``
            return network_from_file(planned.config.out)[0]
        if row.name == recipe.teacher and row.name in planned.config.teachers:
            teachers = build_teachers(
                planned.config.teachers,
                {row.name: ["logits"]},
                len(data.classes),
                classes=data.classes,
                dataset=data.name,
            )
            return teachers.alone(row.name)
    raise KeyError(row.name)
