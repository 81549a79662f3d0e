"""Finds the runs of teacher assistants: equal students that learned from unequal networks."""

import math
from collections.abc import Iterable
from dataclasses import replace

from segkd.config.schema import ModelConfig, RunConfig
from segkd.engine.summary import Summary, score_of
from segkd.evaluation.assistants import Lesson


def lessons(
    runs: Iterable[tuple[str, RunConfig, Summary]], student: ModelConfig | None
) -> list[Lesson]:
    """What equal students learned from one network each.

    Args:
        runs: name, configuration and summary of finished runs; a name has several seeds.
        student: which student; None: the one with the most such runs.

    Returns:
        Empty unless there are networks of at least two sizes, one of them an assistant: a student
        of another run that has learned from a teacher.
    """
    finished = list(runs)
    made = {str(config.out): (name, config) for name, config, _ in finished}
    found: dict[str, Lesson] = {}
    students: dict[str, str] = {}
    for name, config, summary in finished:
        facts = summary.get("teachers", {})
        if len(config.teachers) != 1 or not config.methods:
            continue
        (entry, teacher), score = next(iter(config.teachers.items())), score_of(summary)
        size = facts.get(entry, {}).get("parameters")
        if size is None:
            continue
        source, taught = made.get(teacher.checkpoint or "", (entry, None))
        lesson = found.get(name) or Lesson(
            name,
            source,
            size,
            (),
            (),
            assistant=taught is not None and bool(taught.methods and taught.teachers),
        )
        if math.isfinite(score):
            found[name] = replace(
                lesson,
                scores=(*lesson.scores, score),
                teacher_scores=(*lesson.teacher_scores, score_of(facts[entry])),
            )
            students[name] = config.student.model_dump_json()
    kinds = list(students.values())
    wanted = student.model_dump_json() if student else max(kinds, key=kinds.count, default="")
    same = [lesson for name, lesson in found.items() if students[name] == wanted]
    sizes = {lesson.parameters for lesson in same}
    return same if len(sizes) > 1 and any(lesson.assistant for lesson in same) else []
