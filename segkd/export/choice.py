"""Which network of a run is exported: the student, or a peer of its kind that scored higher."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from segkd.errors import ConfigError
from segkd.models.weights import load_student_file, resolve


@dataclass(frozen=True)
class Choice:
    """The network to export.

    Attributes:
        source: what to open.
        notes: what the user should know about it.
    """

    source: str | Path
    notes: list[str] = field(default_factory=list)


def best_network(source: str | Path) -> Choice:
    """The best of the student of a run and of its peers with the same configuration.

    After mutual learning these are interchangeable. Peers of another architecture are not: they
    are only mentioned if they scored higher. Anything but a run folder is returned as it is.

    Args:
        source: see ``load_student_file``.

    Raises:
        ConfigError: an exported file.
        CheckpointError: there is no such file, or one of them is damaged.
    """
    if str(source).lower().endswith((".onnx", ".pt2")):
        raise ConfigError(f"{source} is an exported file. Give the checkpoint it was made from")
    if str(source).startswith("pretrained:") or not Path(source).expanduser().is_dir():
        return Choice(source)
    student = resolve(source)
    peers = sorted(student.parent.glob("best_*.pt")) if student.name == "best.pt" else []
    if not peers:
        return Choice(source)
    facts = {path: load_student_file(path) for path in (student, *peers)}
    scores = {path: _score(one.get("score")) for path, one in facts.items()}
    equals = [path for path, one in facts.items() if one["model"] == facts[student]["model"]]
    best = max(equals, key=lambda path: scores[path])
    shown = {
        path: f"{one.get('score_name', 'mIoU')} {100 * scores[path]:.2f}"
        for path, one in facts.items()
    }
    notes = []
    if best != student:
        notes.append(
            f"{best.name} is exported, a peer of the student with the same configuration and a "
            f"higher score: {shown[best]}, the student {shown[student]}. The student: {student}"
        )
    for path in facts:
        if path not in equals and scores[path] > scores[best]:
            notes.append(
                f"{path.name}, a peer of another configuration, has {shown[path]}, the exported "
                f"network {shown[best]}. To export that one, give {path}"
            )
    return Choice(best, notes)


def _score(value: float | None) -> float:
    """The score; below all others if it is undefined."""
    return -math.inf if value is None or math.isnan(value) else value
