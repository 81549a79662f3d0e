"""The tensors of a micro-step, and what of them each method receives."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor

from segkd.engine.pseudo_labels import batch_for
from segkd.errors import ConfigError
from segkd.methods.base import Method, nearest
from segkd.models.box_outputs import with_tail
from segkd.ops.known import restricted
from segkd.structures import Batch, Outputs


@dataclass
class StepRecord:
    """Detached tensors of a micro-step, for ``inner_loss`` and ``after_step``.

    Attributes:
        student: outputs of the student.
        teachers: outputs by teacher.
        batch: the images and labels.
    """

    student: Outputs
    teachers: Mapping[str, Outputs]
    batch: Batch


@dataclass
class Seen(StepRecord):
    """What a method receives of a micro-step.

    Attributes:
        teacher: the outputs of its teacher.
    """

    teacher: Outputs


def seen_by(method: Method, record: StepRecord, view: Outputs, *, inner: bool = True) -> Seen:
    """What a method receives.

    What its teacher left open is filled in from the student's outputs. Of methods on the teacher's
    logits, classes that a teacher cannot know are excluded on both sides, and positions that belong
    to them count as padding.

    An entry without a teacher gets None, against the type: whether one is there where ``needs``
    asks for it has been checked before, and a method without a teacher does not read it.
    Raises ConfigError for a teacher of a few classes beside a student without a map.

    Args:
        method: the method.
        record: the step.
        view: the student's outputs for this method, with the values of ``record.student``.
        inner: False for ``Method.loss``, see ``Needs.inner_labels``.
    """
    student, teachers = record.student, record.teachers
    found = teachers.get(teacher_of(method, teachers))
    if found is None:
        batch = batch_for(method, record.batch, None, inner=inner)
        return Seen(view, teachers, batch, cast("Outputs", None))
    if student.rows and found.tail is not None:
        raise ConfigError(
            "the teacher names its most probable classes only, and the others are filled in from "
            "the student's map of the image; this student classifies rows of lanes. Use a teacher "
            "that returns all probabilities"
        )
    further = [teachers[name].unknown for name in method.further_teachers if name in teachers]
    unknown = tuple(sorted({*found.unknown}.union(*further)))
    found = replace(with_tail(found, student), unknown=unknown)
    others = [name for name in method.further_teachers if name in teachers]
    if others:  # one of them may teach in place of the entry's own
        filled = {name: with_tail(teachers[name], student) for name in others}
        found = replace(found, known=_known_to_all(found, *filled.values()))
        teachers = {**teachers, **filled}
    batch = batch_for(method, record.batch, found, student, inner=inner)
    if unknown and "logits" in method.needs.teacher:
        excluded = partial(_without, unknown=unknown)
        view, found = excluded(view), excluded(found)
        teachers = {name: excluded(outputs) for name, outputs in teachers.items()}
    return Seen(view, teachers, batch, found)


def _known_to_all(*teachers: Outputs) -> Tensor | None:
    """Where each of some teachers says something, (B, h, w) bool; None: everywhere."""
    known = [outputs.known for outputs in teachers if outputs.known is not None]
    if not known:
        return None
    height, width = (min(one.shape[axis] for one in known) for axis in (1, 2))
    return torch.stack([nearest(one, height, width) for one in known]).all(0)


def teacher_of(method: Method, teachers: Iterable[str]) -> str:
    """The name of an entry's teacher: the one it names, or the only one; empty without any."""
    return method.config.teacher or next(iter(teachers), "")


def _without(outputs: Outputs, unknown: tuple[int, ...]) -> Outputs:
    return replace(outputs, logits=restricted(outputs.logits, unknown))
