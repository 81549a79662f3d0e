"""The networks that a report looks at: teacher, student alone, distilled student."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from segkd.errors import SegKDError
from segkd.models.build import network_from_file
from segkd.models.teacher import build_teachers
from segkd.models.weights import resolve
from segkd.report.collect import Collection, Run


@dataclass(frozen=True)
class Actor:
    """A network with what it is called and what part it plays.

    Attributes:
        name: of the run or teacher.
        role: teacher, baseline, or empty for the student.
        network: in eval mode.
        fingerprint: of its configuration and weights.
        step: after which the weights were kept; None for a teacher from outside.
    """

    name: str
    role: str
    network: nn.Module
    fingerprint: str
    step: int | None = None


def cast(collection: Collection) -> tuple[list[Actor], list[str]]:
    """Teacher, student alone and the student, as far as they are there.

    Returns:
        The networks, and a sentence for each that cannot be had.
    """
    student = collection.student
    wanted = [("teacher", collection.role("teacher")), ("baseline", collection.role("baseline"))]
    wanted = [(role, group) for role, group in wanted if group is not None and group != student]
    actors: list[Actor] = []
    notes: list[str] = []
    if collection.role("teacher") is None and collection.teacher_name is not None:
        _try(actors, notes, collection.teacher_name, _outside_teacher, collection)
    for role, group in [*wanted, ("", student)]:
        if group.shown.best is None:
            notes.append(f"'{group.name}' has no checkpoints/best.pt yet: it was not evaluated.")
        else:
            _try(actors, notes, group.name, _student, group.shown, role)
    order = ["teacher", "baseline", ""]
    return sorted(actors, key=lambda actor: order.index(actor.role)), notes


def _try(actors: list[Actor], notes: list[str], name: str, make, *arguments) -> None:
    """Adds a network, or a note that says why it cannot be built here."""
    try:
        actors.append(make(name, *arguments))
    except SegKDError as error:
        notes.append(f"'{name}' cannot be looked at: {error}.")


def _student(name: str, run: Run, role: str) -> Actor:
    network, payload = network_from_file(run.best)
    return Actor(name, role, network, _digest([run.best]), payload.get("step"))


def _outside_teacher(name: str, collection: Collection) -> Actor:
    run = collection.student.shown
    if name not in run.config.teachers:
        raise SegKDError("it was a module of the caller's own, which only Python can build")
    configs = {
        key: teacher.model_copy(
            update={"checkpoint": teacher.checkpoint and run.located(teacher.checkpoint)}
        )
        for key, teacher in run.config.teachers.items()
    }
    classes = _classes(run)
    teachers = build_teachers(
        configs,
        {name: ["logits"]},
        len(classes),
        classes=classes,
        dataset=run.config.data.name,
    )
    network = teachers.alone(name)
    files = [resolve(config.checkpoint) for config in configs.values() if config.checkpoint]
    text = repr(sorted((key, config.model_dump_json()) for key, config in configs.items()))
    return Actor(name, "teacher", network.eval(), _digest(files, text + name))


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
