"""Replaces default taps of methods by taps that student and teachers have."""

from collections.abc import Collection, Mapping

from segkd.data.base import Dataset
from segkd.engine.pseudo_labels import takes_pseudo_labels
from segkd.engine.step_record import teacher_of
from segkd.errors import ConfigError, did_you_mean
from segkd.methods.base import PRE, Method, Needs
from segkd.models.network import Network
from segkd.models.teacher import Teachers


def bind_methods(
    methods: Mapping[str, Method],
    student: Network,
    teachers: Mapping[str, object],
    names: Collection[str],
) -> dict[str, str]:
    """Lets each method choose its default taps, before ``needs`` is final.

    Args:
        methods: entries of ``methods:`` by name.
        student: the network that learns.
        teachers: teachers built so far; those that are not a Network have no features.
        names: names of all teachers, including ensembles.

    Returns:
        By entry, one line of text about taps that differ from the defaults.

    Raises:
        ConfigError: the networks are too shallow for an entry's default taps; names the entry.
    """
    lines = {}
    for name, method in methods.items():
        before = method.needs
        teacher = teachers.get(teacher_of(method, names)) if before.teacher else None
        theirs = teacher.named_taps() if isinstance(teacher, Network) else None
        try:
            method.bind_taps(student.named_taps(), theirs)
            for other in method.further_teachers:
                if other not in names:
                    raise ConfigError(f"there is no teacher '{other}'.{did_you_mean(other, names)}")
                network = teachers.get(other)
                taps = network.named_taps() if isinstance(network, Network) else None
                method.bind_further(other, student.named_taps(), taps)
        except ConfigError as error:
            raise ConfigError(f"methods.{name}: {error}") from error
        if method.needs != before:
            lines[name] = _line(before, method.needs)
    return lines


def require_classes(methods: Mapping[str, Method], teachers: Teachers, data: Dataset) -> None:
    """Checks that teachers whose classes are pseudo labels of unlabelled images have classes.

    Raises:
        ConfigError: one has features alone; names the entry.
    """
    for name, method in methods.items() if data.unlabelled else ():
        if not (method.needs.labels and takes_pseudo_labels(method)):
            continue
        teacher = teacher_of(method, teachers.names)
        if not teachers.has_classes(teacher):
            raise ConfigError(
                f"methods.{name}: needs labels, and takes the teacher's classes for images without "
                f"labels, but teacher '{teacher}' has features without classes. Set "
                f"methods.{name}.pseudo_labels=null, so that it skips these images"
            )


def _line(before: Needs, after: Needs) -> str:
    sides = (("student", after.student, before.student), ("teacher", after.teacher, before.teacher))
    text = "; ".join(f"{side}: {', '.join(taps)}" for side, taps, _ in sides if taps)
    for side, taps, plain in sides:
        if any(tap.endswith(PRE) for tap in plain) and not any(tap.endswith(PRE) for tap in taps):
            text += f" (of the {side} without `:pre`: no activation produces it)"
    return text
