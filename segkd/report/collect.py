"""Reads the folders of runs, finished or not."""

import contextlib
import math
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from segkd import registry
from segkd.config.load import load_text
from segkd.config.schema import RunConfig
from segkd.data.base import same_validation
from segkd.engine.logging import read_csv
from segkd.engine.summary import Summary
from segkd.errors import ConfigError, DataError, did_you_mean
from segkd.texts import parse_json, read_text

_SEED = re.compile(r"seed\d+")

Role = Literal["", "teacher", "baseline"]


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        folder: its present folder.
        config: its configuration.
        summary: its summary.json; None if it is not finished.
        metrics: the rows of its metrics.csv.
    """

    folder: Path
    config: RunConfig
    summary: Summary | None
    metrics: list[dict[str, str]]

    @property
    def out(self) -> Path:
        """The folder in which it was trained."""
        return Path(self.config.out or self.folder)

    @property
    def seed(self) -> int:
        """Its seed."""
        return self.config.seed

    @property
    def best(self) -> Path | None:
        """The student's checkpoint; None if there is none yet."""
        path = self.folder / "checkpoints" / "best.pt"
        return path if path.is_file() else None

    @property
    def step(self) -> int:
        """The last known step."""
        if self.summary is not None:
            return self.summary["steps"]
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def score(self) -> float | None:
        """mIoU, or F1 for lanes, of the last step, 0 to 1; None if unfinished or undefined."""
        summary = self.summary or {}
        return summary.get("score", summary.get("miou"))

    def located(self, checkpoint: str) -> str:
        """The present path of a checkpoint in the configuration.

        If the folder was moved together with others, the part of the path that the checkpoint
        shares with ``out`` is replaced by its new location.
        """
        if ":" in checkpoint or Path(checkpoint).is_absolute() != self.out.is_absolute():
            return checkpoint
        shared = os.path.commonpath([str(self.out), checkpoint]) or "."
        inner = Path(os.path.relpath(self.out, shared)).parts
        here = self.folder.resolve()
        if here.parts[-len(inner) :] != inner:
            return checkpoint
        moved = Path(*here.parts[: -len(inner)]) / os.path.relpath(checkpoint, shared)
        return str(moved) if moved.exists() else checkpoint


@dataclass(frozen=True)
class Group:
    """The seeds of one run.

    Attributes:
        name: name of the run.
        runs: one per seed.
        role: ``teacher``, ``baseline``, or empty for a distilled student.
        teaches: whether other groups learn from it, as from an assistant without that role.
    """

    name: str
    runs: tuple[Run, ...]
    role: Role = ""
    teaches: bool = False

    @property
    def finished(self) -> list[Summary]:
        """Summaries of the finished seeds."""
        return [run.summary for run in self.runs if run.summary is not None]

    @property
    def scores(self) -> list[float]:
        """Scores of the finished seeds, 0 to 1."""
        return [run.score for run in self.runs if run.score is not None]

    @property
    def mean(self) -> float:
        """Mean score over the finished seeds; NaN without any."""
        return statistics.fmean(self.scores) if self.scores else math.nan

    @property
    def shown(self) -> Run:
        """The run whose student is shown: the first with a checkpoint."""
        return next((run for run in self.runs if run.best), self.runs[0])


@dataclass(frozen=True)
class Collection:
    """The runs of one report.

    Attributes:
        title: name of the recipe or run.
        folder: default folder of the report.
        groups: in the order in which they are shown.
    """

    title: str
    folder: Path
    groups: tuple[Group, ...]

    def role(self, role: Role) -> Group | None:
        """The first group of a role."""
        return next((group for group in self.groups if group.role == role), None)

    def has_other_classes(self, group: Group) -> bool:
        """Whether a group labels images with other classes than the student."""
        return not _same_classes(group, self.student)

    @property
    def student(self) -> Group:
        """The student that the report is about: the best distilled one, else the first."""
        others = [group for group in self.groups if not group.role] or list(self.groups)
        others = [group for group in others if group.runs[0].config.methods] or others
        others = [group for group in others if not self._assists(group)] or others
        with_file = [group for group in others if group.shown.best] or others
        return max(with_file, key=lambda group: -1.0 if math.isnan(group.mean) else group.mean)

    def _assists(self, group: Group) -> bool:
        """Whether a group is an assistant: it teaches others, and is another network than they."""
        baseline = self.role("baseline")
        return group.teaches and (baseline is None or not _same_student(group, baseline))

    @property
    def task(self) -> str:
        """``segmentation`` or ``lanes``."""
        return registry.datasets.get(self.student.shown.config.data.name).task

    @property
    def score_name(self) -> str:
        """Name of the scores: mIoU, or F1 and the like for lanes."""
        summaries = [summary for group in self.groups for summary in group.finished]
        return next((item["score_name"] for item in summaries if "score_name" in item), "mIoU")

    @property
    def teacher_entry(self) -> tuple[Run, str] | None:
        """Who shows the teacher on the student's dataset, if its run was trained on another one.

        A run with the student's dataset, and the name in its `teachers:`; None if the teacher has
        no run, or one on that dataset, or if there is no such entry.
        """
        if not self.teacher_is_elsewhere:
            return None
        group, data = self.role("teacher"), self.student.shown.config.data
        runs = [self.student.shown, *(run for other in self.groups for run in other.runs)]
        for run in runs:
            for name, base in _teacher_bases(run).items():
                own = group is not None and base == _base(group.runs[0].folder)
                if own and same_validation(run.config.data, data):
                    return run, name
        return None

    @property
    def facts_of_teacher(self) -> dict[str, Any]:
        """What a student's summary says of the teacher of ``teacher_entry``; empty without one."""
        if self.teacher_entry is None:
            return {}
        run, name = self.teacher_entry
        return (run.summary or {}).get("teachers", {}).get(name, {})

    @property
    def teacher_is_elsewhere(self) -> bool:
        """Whether the teacher's run was trained on another dataset than the student."""
        group = self.role("teacher")
        return group is not None and not same_validation(
            group.shown.config.data, self.student.shown.config.data
        )

    @property
    def teacher_name(self) -> str | None:
        """The best teacher of the student without a run here, an entry of ``teachers:``."""
        run = self.student.shown
        facts = (run.summary or {}).get("teachers", {})
        here, bases = {_base(group.runs[0].folder) for group in self.groups}, _teacher_bases(run)
        names = [name for name in run.config.teachers or facts if bases.get(name) not in here]
        return max(names, key=lambda name: teacher_score(facts.get(name, {})), default=None)


def teacher_score(facts: Mapping[str, Any]) -> float:
    """The score in a summary's entry of a teacher; -1 if it is missing."""
    value = facts.get("score", facts.get("miou"))
    return -1.0 if value is None else value


def collect(paths: Sequence[Path], baseline: str | None = None) -> Collection:
    """Finds the runs in folders of runs or recipes.

    Args:
        paths: folders.
        baseline: name of the student baseline; default: found from the configurations.

    Raises:
        ConfigError: a folder without a run, or an unknown baseline.
    """
    folders = list(dict.fromkeys(folder for path in paths for folder in _run_folders(path)))
    seeds: dict[Path, list[Run]] = {}
    for folder in folders:
        seeds.setdefault(_base(folder), []).append(_read(folder))
    names = _names(list(seeds))
    groups = [
        Group(names[base], tuple(sorted(runs, key=lambda run: run.seed)))
        for base, runs in seeds.items()
    ]
    groups = _with_roles(groups, _stored_roles(paths), baseline)
    folder = paths[0] / "report" if len(paths) == 1 else Path("report")
    title = ", ".join(path.resolve().name for path in paths)
    return Collection(_stored_title(paths) or title, folder, tuple(groups))


def _run_folders(path: Path) -> list[Path]:
    if path.is_file():
        raise ConfigError(f"{path} is a file. Give run folders, e.g. runs/quickstart")
    if not path.is_dir():
        raise ConfigError(f"there is no folder {path}. Give run folders, e.g. runs/quickstart")
    found = [path] if (path / "config.yaml").is_file() else []
    found = found or sorted(file.parent for file in path.rglob("config.yaml"))
    if not found:
        raise ConfigError(
            f"{path} has no run: there is no config.yaml in it or below. Give the folder of a "
            "run or of a recipe, e.g. runs/quickstart"
        )
    return [folder.resolve() for folder in found]


def _read(folder: Path) -> Run:
    try:
        config = load_text(read_text(folder / "config.yaml"))
    except ValueError as error:
        raise ConfigError(f"{folder}: {error}") from None
    summary = folder / "summary.json"
    facts = _read_summary(summary) if summary.is_file() else None
    return Run(folder, config, facts, read_csv(folder / "metrics.csv"))


def _read_summary(path: Path) -> Summary:
    try:
        facts = parse_json(read_text(path), str(path))
        if not isinstance(facts, dict) or not isinstance(facts.get("steps"), int):
            raise DataError(f"{path}: it does not say how many steps the run has")
    except DataError as error:
        raise ConfigError(
            f"{error}. Delete it: the run is then shown as unfinished, and the command that "
            "trained it writes it again"
        ) from None
    return facts


def _base(folder: Path) -> Path:
    """The folder of all seeds of a run."""
    return folder.parent if _SEED.fullmatch(folder.name) else folder


def _folder_of(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint belongs to, given as folder or file."""
    inside = checkpoint.parent.name == "checkpoints" and not checkpoint.is_dir()
    return checkpoint.parent.parent if inside else checkpoint


def _names(bases: Sequence[Path]) -> dict[Path, str]:
    """The last parts of paths, as many as are needed to distinguish them."""
    names: dict[Path, str] = {}
    for length in range(1, 20):
        names = {base: "/".join(base.parts[-length:]) for base in bases}
        if len(set(names.values())) == len(bases):
            break
    return names


def _with_roles(groups: list[Group], stored: dict[str, Role], baseline: str | None) -> list[Group]:
    """The groups with their roles; teacher and student baseline come first."""
    names = [group.name for group in groups]
    if baseline is not None and baseline not in names:
        raise ConfigError(
            f"--baseline: there is no run '{baseline}'.{did_you_mean(baseline, names)}"
        )
    roles: dict[str, Role] = {name: role for name, role in stored.items() if role}
    teachers = {
        base for group in groups for run in group.runs for base in _teacher_bases(run).values()
    }
    groups = [replace(group, teaches=_base(group.runs[0].folder) in teachers) for group in groups]
    taught = [group for group in groups if group.runs[0].config.methods]
    for group in groups:
        # In a chain a run teaches that the recipe has as its baseline, or as a student.
        is_student = group.name in stored and group in taught
        if group.teaches and not is_student:
            roles.setdefault(group.name, "teacher")
    alone = baseline or next((name for name in names if roles.get(name) == "baseline"), None)
    if alone is None and taught:
        plain = [g for g in groups if g not in taught and roles.get(g.name) != "teacher"]
        plain = [g for g in plain if any(_same_classes(g, other) for other in taught)]
        same = [g for g in plain if any(_same_student(g, other) for other in taught)]
        alone = next((group.name for group in same or plain), None)
    roles = {name: role for name, role in roles.items() if role != "baseline"}
    if alone is not None:
        roles[alone] = "baseline"
    found = [replace(group, role=roles.get(group.name, "")) for group in groups]
    order = {"teacher": 0, "baseline": 1, "": 2}
    return sorted(found, key=lambda group: order[group.role])


def _teacher_bases(run: Run) -> dict[str, Path]:
    """The folders of the runs that a run's teachers come from, without seeds."""
    return {
        name: _base(_folder_of(Path(run.located(teacher.checkpoint)).resolve()))
        for name, teacher in run.config.teachers.items()
        if teacher.checkpoint
    }


def _same_student(one: Group, other: Group) -> bool:
    return one.runs[0].config.student == other.runs[0].config.student


def _same_classes(one: Group, other: Group) -> bool:
    """Whether two groups label images with the same classes; without them, of the same set."""
    stored = [(group.shown.summary or {}).get("classes") for group in (one, other)]
    if all(stored):
        return stored[0] == stored[1]
    return one.shown.config.data.name == other.shown.config.data.name


def _stored(paths: Sequence[Path]) -> dict[str, Any]:
    """The stored table of a recipe; empty without one, or for one that is damaged."""
    file = paths[0] / "report" / "table.json"
    if len(paths) > 1 or not file.is_file():
        return {}
    with contextlib.suppress(DataError):
        found = parse_json(read_text(file), str(file))
        return found if isinstance(found, dict) else {}
    return {}


def _stored_roles(paths: Sequence[Path]) -> dict[str, Role]:
    rows = _stored(paths).get("rows")
    known = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return {row["name"]: row.get("role", "") for row in known if "name" in row}


def _stored_title(paths: Sequence[Path]) -> str:
    return _stored(paths).get("title", "")
