"""The networks of a report: teacher, student baseline, distilled student."""

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from segkd.config.networks import TeacherConfig
from segkd.engine.sources import folder_files
from segkd.errors import SegKDError
from segkd.models.build import network_from_file
from segkd.models.teacher import build_teachers
from segkd.models.weights import resolve
from segkd.report.collect import Collection, Group, Role, Run


@dataclass(frozen=True)
class Actor:
    """A network of a report.

    Attributes:
        name: name of the run or teacher.
        role: ``teacher``, ``baseline``, or empty for the student.
        network: in eval mode.
        fingerprint: hash of its configuration and weights.
        step: step of its checkpoint; None for a teacher without a run.
    """

    name: str
    role: Role
    network: nn.Module
    fingerprint: str
    step: int | None = None


def cast(collection: Collection) -> tuple[list[Actor], list[str]]:
    """Teacher, student baseline and student, as far as they are available.

    Returns:
        The networks, and a sentence for each that is not available.
    """
    student = collection.student
    roles: tuple[Role, ...] = ("teacher", "baseline")
    found = [(role, collection.role(role)) for role in roles]
    wanted = [(role, group) for role, group in found if group is not None and group != student]
    actors: list[Actor] = []
    notes: list[str] = []
    if collection.role("teacher") is None and collection.teacher_name is not None:
        name = collection.teacher_name
        _try(actors, notes, name, partial(_as_taught, name, student.shown, name))
    last: tuple[Role, Group] = ("", student)
    for role, group in [*wanted, last]:
        best = group.shown.best
        if role == "teacher" and collection.teacher_is_elsewhere:
            # The classes of its own network are others than those of the images.
            if collection.teacher_entry is None:
                notes.append(
                    f"'{group.name}' was trained on another dataset: it was not evaluated."
                )
            else:
                run, entry = collection.teacher_entry
                _try(actors, notes, group.name, partial(_as_taught, group.name, run, entry))
        elif role == "baseline" and collection.has_other_classes(group):
            notes.append(
                f"'{group.name}' has other classes than '{student.name}': it was not evaluated."
            )
        elif best is None:
            notes.append(f"'{group.name}' has no checkpoints/best.pt yet: it was not evaluated.")
        else:
            _try(actors, notes, group.name, partial(_student, group.name, best, role))
    order = ["teacher", "baseline", ""]
    return sorted(actors, key=lambda actor: order.index(actor.role)), notes


def _try(actors: list[Actor], notes: list[str], name: str, make: Callable[[], Actor]) -> None:
    """Adds a network, or a note about why it cannot be built."""
    try:
        actors.append(make())
    except SegKDError as error:
        notes.append(f"'{name}' could not be loaded: {error}.")


def _student(name: str, best: Path, role: Role) -> Actor:
    network, payload = network_from_file(best)
    return Actor(name, role, network, _digest([best]), payload.get("step"))


def _as_taught(title: str, run: Run, name: str) -> Actor:
    """A teacher with the classes of the run that learned from it, where it is called ``name``."""
    if name not in run.config.teachers:
        raise SegKDError("it was a wrapped module, which can only be built in Python")
    needed = _with_members(run.config.teachers, name)
    if any(teacher.black_box for teacher in needed.values()):
        what = "is" if run.config.teachers[name].black_box else "has a member that is"
        raise SegKDError(f"it {what} a black box, which a report does not query")
    configs = {
        key: teacher.model_copy(
            update={"checkpoint": teacher.checkpoint and run.located(teacher.checkpoint)}
        )
        for key, teacher in needed.items()
    }
    classes = _classes(run)
    teachers = build_teachers(
        configs,
        {name: ["logits"]},
        len(classes),
        classes=classes,
        dataset=run.config.data.name,
    )
    if not teachers.has_classes(name):
        raise SegKDError("it has features without classes")
    network = teachers.alone(name)
    files = [resolve(config.checkpoint) for config in configs.values() if config.checkpoint]
    for library in (name for config in configs.values() for name in (config.hf, config.timm)):
        with contextlib.suppress(FileNotFoundError):  # a name for a hub, whose files stay the same
            files += folder_files(library) if library else []
    text = repr(sorted((key, config.model_dump_json()) for key, config in configs.items()))
    return Actor(title, "teacher", network.eval(), _digest(files, text + name))


def _with_members(teachers: Mapping[str, TeacherConfig], name: str) -> dict[str, TeacherConfig]:
    """A teacher, and if it is an ensemble all that it consists of."""
    found: dict[str, TeacherConfig] = {}
    waiting = [name]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found[one] = teachers[one]
            waiting += teachers[one].ensemble
    return found


def _classes(run: Run) -> list[str]:
    from segkd.engine.setup import open_dataset

    stored = (run.summary or {}).get("classes")
    return stored or list(open_dataset(run.config, run.config.data.val_split).classes)


def _digest(files: list[Path], text: str = "") -> str:
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for file in files:
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "blake2b").digest())
    return digest.hexdigest()
