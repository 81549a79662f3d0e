"""Which tap of the teacher a tap of the student is compared with."""

from collections.abc import Sequence

from segkd.errors import ConfigError


def paired_taps(student: Sequence[str], teacher: Sequence[str], method: str) -> dict[str, str]:
    """The teacher's tap of each tap of the student, in the order given.

    Args:
        student: names of the student's taps, each once.
        teacher: as many of the teacher; empty: the same names.
        method: for the error.

    Raises:
        ConfigError: no tap, a tap given twice, or unequal numbers.
    """
    if not student or len(set(student)) < len(student):
        raise ConfigError(
            f"method '{method}': got taps {list(student)}, expected at least one and none twice"
        )
    if teacher and len(teacher) != len(student):
        raise ConfigError(
            f"method '{method}': got {len(student)} taps but {len(teacher)} teacher_taps. Give one "
            "of the teacher for each of the student, or leave teacher_taps out for the same names"
        )
    return dict(zip(student, teacher or student, strict=True))
