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
_EXAMPLES = {"methods": "methods.kd.weight=2", "unlabeled": "data.unlabeled.share=0.5"}
_TOP = ("title", "seeds", "sort", "match", "common", "runs")  # keys of a recipe, not of its runs
_INSTEAD = {  # keys of a recipe or run that the command sets itself
    "out": "--out DIR",
    "steps": "--steps N",
    "seed": "seeds=[0]",
    "baseline": "--baseline or --no-baseline",
    "teacher": "--teacher NAME",
    "only": "--no-baseline to leave out the baseline",
    "shared": "it into the recipe, once it is written",
    "series": "it into the recipe, once it is written",
}
_BLOCKS = {  # overrides that have keys below them, with an example
    ("data",): "data.color_jitter=0",
    ("student",): "student.weights=imagenet; for another network: --student NAME",
    ("teachers",): f"teachers.{NAME}.precision=fp32; for another one: --teacher NAME",
    ("teachers", NAME): f"teachers.{NAME}.precision=fp32; for another one: --teacher NAME",
}
_SHARE, _BIG_SHARE, _MANY = 0.334, 0.5, 3  # of unlabelled images; more where they are many


@dataclass(frozen=True)
class Unlabelled:
    """Images without masks for distillation: keys of ``data.unlabeled``, and their number."""

    block: dict[str, Any]
    count: int


def split_overrides(tree: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Overrides of the command line: keys of each run, and keys of the recipe.

    Raises:
        ConfigError: a key that the command sets itself, or a value where there are keys.
    """
    top = {key: value for key, value in tree.items() if key in _TOP}
    common = {key: value for key, value in tree.items() if key not in _TOP}
    for key, instead in _INSTEAD.items():
        if key in common:
            raise ConfigError(f"{key}=…: write {instead}")
    above = top.pop("common", {})
    _require_keys(above, "common", "common.optim.lr=0.01")
    common = merged(common, above)
    for path, example in _BLOCKS.items():
        block: Any = common
        for key in path:
            block = block.get(key, {})
        _require_keys(block, ".".join(path), example)
    return common, top


def _require_keys(value: object, key: str, example: str) -> None:
    """Raises ConfigError for a value in the place of keys."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key}: got {value!r}, expected keys, e.g. {example}")


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
        common: the user's keys of each run; of methods and unlabelled images: of those that have a
            teacher.
        top: the user's keys of the recipe.
    """
    common, asked = _of_distilled(common)
    labelled, images = source.labelled, source.counts["train"] if source.labelled else 0
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
    runs[DISTILLED] = _distilled(teacher, keys, unlabelled, images, notes, asked)
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


def _of_distilled(common: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The user's keys of each run, and those of methods and of images without labels, which only
    the distilled student has: ``methods``, ``unlabeled``."""
    rest = deepcopy(dict(common))
    data = rest.get("data")
    asked = {
        "methods": rest.pop("methods", None) or {},
        "unlabeled": (data.pop("unlabeled", None) or {}) if isinstance(data, dict) else {},
    }
    for key, value in asked.items():
        _require_keys(value, key, _EXAMPLES[key])
    return rest, asked


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
    asked: Mapping[str, Any],
) -> dict[str, Any]:
    """The run of the student with its teacher.

    Args:
        teacher: as chosen.
        keys: of each run.
        unlabelled: images without masks, or None.
        images: number of labelled ones.
        notes: comments by dotted key, to which these are added.
        asked: the user's ``methods`` and ``unlabeled``, which go before what is chosen here.
    """
    run: dict[str, Any] = {}
    where = f"runs.{DISTILLED}"
    own = asked["unlabeled"]
    block = merged(unlabelled.block if unlabelled else {}, own)
    if block and images:
        batch, count = keys["data"]["batch_size"], unlabelled.count if unlabelled else 0
        share = block.get("share", _BIG_SHARE if count >= _MANY * images else _SHARE)
        run["data"] = {"unlabeled": {**block, "share": share}}
        # Other values are checked as those of any file.
        if isinstance(share, int | float) and 0 < share < 1 and isinstance(batch, int):
            whole = max(batch + 1, round(batch / (1 - share)))
            run["data"] = {"batch_size": whole, **run["data"]}
            notes[f"{where}.data.batch_size"] = (
                f"{batch} labelled images as before, and {whole - batch} of those without labels"
            )
        if count and "root" not in own:
            notes[f"{where}.data.unlabeled"] = f"{count} images"
    mapped = isinstance(keys.get("teachers", {}).get(NAME, {}).get("classes"), Mapping)
    run["methods"] = {"kd": {}}
    if teacher.features and not mapped:
        run["methods"]["cwd"] = {}
        notes[f"{where}.methods"] = "default weights; see segkd explain cwd"
    else:
        why = "its classes are mapped" if mapped else "it has no others"
        notes[f"{where}.methods"] = f"for the teacher's probabilities: {why}"
    if asked["methods"]:
        del notes[f"{where}.methods"]
        chosen = merged(run["methods"], asked["methods"])
        run["methods"] = {name: keys for name, keys in chosen.items() if keys is not None}
    return run
