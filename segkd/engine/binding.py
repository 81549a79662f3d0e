"""Default taps become those that student and teachers have, and the log says which."""

from collections.abc import Collection, Mapping

from segkd.engine.objective import teacher_of
from segkd.errors import ConfigError
from segkd.methods.base import PRE, Method, Needs
from segkd.models.network import Network


def bind_methods(
    methods: Mapping[str, Method],
    student: Network,
    teachers: Mapping[str, object],
    names: Collection[str],
) -> dict[str, str]:
    """Lets each method choose its default taps, before what it needs is read for good.

    Args:
        methods: entries of ``methods:`` by name.
        student: the network that learns.
        teachers: what is made already; those that are no Network have no features.
        names: of all teachers, ensembles as well.

    Returns:
        By entry, one line about taps that are not the plain defaults.

    Raises:
        ConfigError: naming the entry whose defaults the networks are too shallow for.
    """
    lines = {}
    for name, method in methods.items():
        before = method.needs
        teacher = teachers.get(teacher_of(method, names)) if before.teacher else None
        theirs = teacher.named_taps() if isinstance(teacher, Network) else None
        try:
            method.bind_taps(student.named_taps(), theirs)
        except ConfigError as error:
            raise ConfigError(f"methods.{name}: {error}") from error
        if method.needs != before:
            lines[name] = _line(before, method.needs)
    return lines


def _line(before: Needs, after: Needs) -> str:
    sides = (("student", after.student, before.student), ("teacher", after.teacher, before.teacher))
    text = "; ".join(f"{side}: {', '.join(taps)}" for side, taps, _ in sides if taps)
    for side, taps, plain in sides:
        if any(tap.endswith(PRE) for tap in plain) and not any(tap.endswith(PRE) for tap in taps):
            text += f" (of the {side} as it is: no activation makes it)"
    return text
