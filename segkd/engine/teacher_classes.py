"""Teachers of other classes in the log and the summary of a run."""

from typing import Any

from segkd.engine.setup import Components
from segkd.evaluation.evaluator import Outcome, Result
from segkd.metrics.confusion import mean_iou


def score_of_known(parts: Components, name: str, result: Outcome) -> float | None:
    """The mIoU of the classes that a teacher of other classes knows, on their pixels.

    Args:
        parts: of the run.
        name: of the teacher.
        result: of its evaluation.

    Returns:
        None if it knows all classes, or its score is no mIoU.
    """
    unknown = parts.teachers.unknown(name)
    if not unknown or not isinstance(result, Result):
        return None
    known = [number for number in range(len(result.classes)) if number not in unknown]
    return mean_iou(result.matrix[known][:, known])


def teacher_facts(parts: Components, name: str, of_known: float | None) -> dict[str, Any]:
    """Class map, and score of the known classes, as far as there are any."""
    found: dict[str, Any] = {}
    member = None if name in parts.teachers.ensembles else parts.teachers.members[name]
    if member is not None and member.class_facts:
        found["class_map"] = dict(member.class_facts)
    return found if of_known is None else found | {"miou_of_known": of_known}
