"""The image sheet of a recipe: label, teacher, baseline and the best distilled student."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import nn

from segkd.config.recipe import PlannedRun
from segkd.config.schema import RecipeConfig
from segkd.data.base import Dataset
from segkd.data.lane_base import is_lane_set
from segkd.data.loader import eval_loader
from segkd.data.picked import Picked
from segkd.data.writing import write_image
from segkd.engine.recipe_teacher import students_entries
from segkd.engine.setup import open_dataset
from segkd.evaluation.lane_pictures import lane_pictures
from segkd.evaluation.results import ComparisonRow
from segkd.inference.views import label_maps
from segkd.models.build import network_from_file
from segkd.models.given import with_classes
from segkd.models.network import Network
from segkd.models.teacher import build_teachers
from segkd.ops.mode import eval_mode
from segkd.viz.overlay import comparison_sheet

PICTURES = 6  # images on the sheet
COLUMNS = 3  # networks on the sheet: teacher, baseline, and the best of the other students


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
    students = [p for p in plan if not p.once and p.name != recipe.teacher]
    config = next(iter([*students, *plan])).config
    dataset = open_dataset(config, config.data.val_split)
    spread = np.linspace(0, len(dataset) - 1, min(PICTURES, len(dataset)))
    chosen = [int(index) for index in spread.round()]
    shown = shown_rows(recipe, rows)
    networks = {
        _title(row): _given(row.name, given, dataset) or _network(row, recipe, plan, dataset)
        for row in shown
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


def shown_rows(recipe: RecipeConfig, rows: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    """Those of the networks on the sheet: teacher, baseline, the best of the other students."""
    # A teacher without a score, a backbone or a box with a budget, has no label maps here.
    shown = [row for row in rows if row.role and (row.scores or row.role != "teacher")]
    distilled = [row for row in rows if not row.role and row.name in recipe.runs]
    others = sorted(distilled, key=lambda row: row.rank, reverse=True)
    return shown + others[: COLUMNS - len(shown)]


def _compared(rows: Sequence[ComparisonRow]) -> tuple[str, str] | None:
    """Columns of the best distilled student and of the baseline, else of the teacher."""
    student = next((row for row in rows if not row.role), None)
    others = {row.role: row for row in rows if row.role}
    reference = others.get("baseline") or others.get("teacher")
    return (_title(student), _title(reference)) if student and reference else None


def _title(row: ComparisonRow) -> str:
    return f"{row.name}\n{row.score_name} {100 * row.mean:.1f}"


def _given(name: str, given: Mapping[str, nn.Module], data: Dataset) -> nn.Module | None:
    """A network of the caller with the classes of the data, if the row is of one."""
    network = given.get(name)
    if not isinstance(network, Network):
        return network
    return with_classes(network, data.classes, f"the given {network.title}")


def _network(
    row: ComparisonRow, recipe: RecipeConfig, plan: Sequence[PlannedRun], data: Dataset
) -> nn.Module:
    """The network of a row: the student of the first seed, or a teacher as students see it."""
    for planned in plan:
        if planned.name == row.name:
            return network_from_file(planned.folder)[0]
        if row.name == recipe.teacher and row.name in planned.config.teachers:
            return _teacher(planned, row.name, data)
    entries = students_entries(recipe, plan)
    if row.role == "teacher" and entries:
        student, entry = next(iter(entries.values()))
        return _teacher(student, entry, data)
    raise KeyError(row.name)


def _teacher(student: PlannedRun, entry: str, data: Dataset) -> nn.Module:
    """A teacher with the classes of the student that learns from it."""
    teachers = build_teachers(
        student.config.teachers,
        {entry: ["logits"]},
        len(data.classes),
        classes=data.classes,
        dataset=data.name,
    )
    return teachers.alone(entry)
