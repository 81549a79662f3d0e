"""Untrained networks in place of those that earlier runs of a recipe have yet to train."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segkd.config.recipe import PlannedRun, with_value
from segkd.config.schema import ModelConfig, RunConfig, TeacherConfig

_OF_THE_NETWORK = ("arch", "encoder", "weights", "options", "normalize")  # without `arch`

Untrained = Mapping[str, ModelConfig]  # by the folder of a run without a checkpoint


def stand_in(planned: PlannedRun, plan: Sequence[PlannedRun]) -> RunConfig:
    """The run of a recipe with untrained networks, which cost the same, for missing checkpoints.

    Args:
        planned: the run.
        plan: all runs of its recipe, each after those that it depends on.
    """
    untrained: dict[str, ModelConfig] = {}
    for other in plan:
        if not (Path(str(other.config.out)) / "checkpoints" / "best.pt").exists():
            untrained[str(other.config.out)] = _student(other.config.student, untrained)
    config = planned.config
    changes = {
        "student": _student(config.student, untrained),
        "teachers": {name: _teacher(one, untrained) for name, one in config.teachers.items()},
        "init_from": None if config.init_from in untrained else config.init_from,
    }
    for name, entry in config.methods.items():
        for below, keys in entry.networks().items():
            if keys.get("checkpoint") in untrained:
                peer = _student(ModelConfig(**keys), untrained).model_dump(exclude_none=True)
                config = with_value(config, ("methods", name, *below), peer)
    return config.model_copy(update=changes)


def without_compile(config: RunConfig) -> RunConfig:
    """The run without torch.compile, which takes minutes and finds no mistakes."""
    runtime = config.runtime.model_copy(update={"compile": False})
    return config.model_copy(update={"runtime": runtime})


def _student(student: ModelConfig, untrained: Untrained) -> ModelConfig:
    source = untrained.get(student.checkpoint or "")
    if source is None:
        return student
    if student.arch:
        return student.model_copy(update={"checkpoint": None})
    return source.model_copy(update={"aux_head": student.aux_head})


def _teacher(teacher: TeacherConfig, untrained: Untrained) -> TeacherConfig:
    """The teacher with its other keys: its classes, its cache, the size of its images."""
    source = untrained.get(teacher.checkpoint or "")
    if source is None:
        return teacher
    taken = () if teacher.arch else _OF_THE_NETWORK
    changes: dict[str, Any] = {key: getattr(source, key) for key in taken}
    return teacher.model_copy(update={**changes, "checkpoint": source.checkpoint})
