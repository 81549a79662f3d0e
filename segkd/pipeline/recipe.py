"""The recipe that `segkd distill` writes and trains: a distilled student, and a baseline."""

import math
import shlex
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segkd.errors import ConfigError
from segkd.pipeline.commented import commented
from segkd.pipeline.settings import Settings
from segkd.pipeline.source import DataSource
from segkd.pipeline.students import StudentChoice
from segkd.pipeline.teachers import NAME, TeacherChoice

BASELINE, DISTILLED = "baseline", "distilled"
_TOP = ("title", "seeds", "sort", "common", "runs")  # keys of a recipe, not of its runs
_SHARE, _BIG_SHARE, _MANY = 0.334, 0.5, 3  # of unlabelled images; more where they are many


@dataclass(frozen=True)
class Unlabelled:
    """Images without masks for distillation: keys of ``data.unlabeled``, and their number."""

    block: dict[str, Any]
    count: int


def split_overrides(tree: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Overrides of the command line: keys of each run, and keys of the recipe.

    Raises:
        ConfigError: a key that the command sets itself.
    """
    top = {key: value for key, value in tree.items() if key in _TOP}
    common = {key: value for key, value in tree.items() if key not in _TOP}
    for key, instead in (("out", "--out DIR"), ("steps", "--steps N"), ("seed", "seeds=[0]")):
        if key in common:
            raise ConfigError(f"{key}=…: write {instead}")
    return merged(common, top.pop("common", {})), top


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both mappings, merged deeply; ``above`` wins."""
    found = deepcopy(dict(below))
    for key, value in above.items():
        inner = found.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            found[key] = merged(inner, value)
        else:
            found[key] = deepcopy(value)
    return found


def _notes(source: DataSource, settings: Settings) -> dict[str, str]:
    """Comments on the keys of the data and on settings."""
    notes = {f"common.{key}": text for key, text in settings.notes.items()}
    for key in source.block:  # of a config: not chosen here
        notes.pop(f"common.data.{key}", None)
    return notes | {f"common.data.{key}": text for key, text in source.notes.items()}


def recipe_of(
    source: DataSource,
    student: StudentChoice,
    teacher: TeacherChoice,
    settings: Settings,
    *,
    out: Path,
    baseline: bool,
    unlabelled: Unlabelled | None,
    common: Mapping[str, Any],
    top: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Keys of the recipe, and comments by dotted key.

    Args:
        source: the data.
        student, teacher: as chosen.
        settings: sizes, batches, steps.
        out: folder of the recipe.
        baseline: whether to train the student without the teacher, too.
        unlabelled: images without masks, in addition to the labelled ones; or None.
        common: the user's keys of each run.
        top: the user's keys of the recipe.
    """
    labelled = source.labelled
    images = source.counts["train"] if labelled else 0
    keys: dict[str, Any] = {"steps": settings.keys["steps"]}
    keys["data"] = {**source.block, **settings.data, **source.block}
    keys["student"] = student.block
    if teacher.block:
        keys["teachers"] = {NAME: teacher.block}
    keys |= {key: value for key, value in settings.keys.items() if key != "steps"}
    notes = _notes(source, settings) | {"common.student": student.note}
    if not labelled:
        keys["data"]["labels"] = "none"
        keys["task"] = {"weight": 0.0}
        notes["common.data.labels"] = "there are none: the student learns from the teacher alone"
        notes["common.task"] = "no loss on labels"
    keys = merged(keys, common)
    for path in _paths(common):  # the reasons of other values than the user's
        notes.pop(f"common.{path}", None)
    runs: dict[str, Any] = {}
    if teacher.student:
        runs[NAME] = _teacher_run(teacher, settings)
        notes[f"runs.{NAME}"] = "trained first, once"
    runs[DISTILLED] = _distilled(teacher, keys, unlabelled, images, notes)
    notes[f"runs.{DISTILLED}"] = "first: the teacher is scored before its first step"
    if baseline and labelled:
        runs[BASELINE] = {"teachers": {NAME: None}} if teacher.block else {}
        notes[f"runs.{BASELINE}"] = "the same student on the labels alone"
    short = teacher.text.rstrip("/").rpartition("/")[2]
    data: dict[str, Any] = {"title": f"{source.name}: {student.name} from {short}"}
    data["out"] = str(out)
    if BASELINE in runs:
        data["baseline"] = BASELINE
    if teacher.block:
        data["teacher"] = NAME
    data |= {"seeds": [0], "common": keys, "runs": runs}
    return merged(data, top), notes


def _paths(tree: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Dotted keys of the leaves of nested mappings."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _paths(value, f"{above}{key}.")
        else:
            yield f"{above}{key}"


def recipe_text(data: Mapping[str, Any], notes: Mapping[str, str], command: str, path: Path) -> str:
    """The file of a recipe, to be written as ``path``."""
    head = (
        f"Written by: {command}\n"
        "Run that command again to go on, or train this file: "
        f"{shlex.join(['segkd', 'train', str(path)])}\n"
        "Every key may be changed before the first step; `segkd config show` prints all of them."
    )
    return commented(data, notes, head)


def _teacher_run(teacher: TeacherChoice, settings: Settings) -> dict[str, Any]:
    steps = math.ceil(1.25 * settings.keys["steps"])
    # An empty key removes what `common` has.
    student = {"encoder": None, "weights": None, "options": None, "checkpoint": None}
    student = {key: value for key, value in student.items() if key not in teacher.student}
    return {
        "once": True,
        "steps": steps,
        "ema": 0.99 if steps >= 500 else None,
        "student": {**student, **teacher.student},
        "teachers": {NAME: None},
    }


def _distilled(
    teacher: TeacherChoice,
    keys: Mapping[str, Any],
    unlabelled: Unlabelled | None,
    images: int,
    notes: dict[str, str],
) -> dict[str, Any]:
    """The run of the student with its teacher; ``images`` is the number of labelled ones."""
    run: dict[str, Any] = {}
    where = f"runs.{DISTILLED}"
    if unlabelled is not None and images:
        batch = int(keys["data"]["batch_size"])
        share = _BIG_SHARE if unlabelled.count >= _MANY * images else _SHARE
        share = unlabelled.block.get("share", share)
        whole = batch if share in (0, 1) else max(batch + 1, round(batch / (1 - share)))
        run["data"] = {"batch_size": whole, "unlabeled": {**unlabelled.block, "share": share}}
        notes[f"{where}.data.batch_size"] = (
            f"{batch} labelled images as before, and {whole - batch} of those without labels"
        )
        if unlabelled.count:
            notes[f"{where}.data.unlabeled"] = f"{unlabelled.count} images"
    mapped = isinstance(keys.get("teachers", {}).get(NAME, {}).get("classes"), Mapping)
    run["methods"] = {"kd": {}}
    if teacher.features and not mapped:
        run["methods"]["cwd"] = {}
        notes[f"{where}.methods"] = "default weights; see segkd explain cwd"
    else:
        why = "its classes are mapped" if mapped else "it has no others"
        notes[f"{where}.methods"] = f"for the teacher's probabilities: {why}"
    return run
