"""The errors that a user may cause. Their message says what was got, where, and what to type."""

import difflib
from collections.abc import Iterable

_LONGEST_WORD = 100


class SegKDError(ValueError):
    """A mistake of the user: shown as one message, without a traceback, with exit code 2."""


class FormerName(FutureWarning):
    """A name of an earlier version was used; it goes on working."""


class ConfigError(SegKDError):
    """A configuration that cannot be run."""


class DataError(SegKDError):
    """A dataset, image or mask that is missing, broken, or out of range."""


class CheckpointError(SegKDError):
    """A file that is no segkd checkpoint, or one that does not fit the network."""


class TrainingError(SegKDError):
    """A training that cannot go on, e.g. because a loss is no longer finite."""


class MachineError(SegKDError):
    """Memory, disk space or a process of the machine failed a command."""


class Interrupted(SegKDError):
    """SIGINT, SIGTERM or SIGHUP ended a training; the message says what was saved.

    Attributes:
        exit_code: 128 + signal number, as shells report it.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


# What code that is given values of wrong types or sizes stumbles over.
ODD_VALUES = (
    *(ValueError, TypeError, LookupError, RuntimeError, AttributeError),
    *(ArithmeticError, AssertionError),
)


def shortened(value: object, most: int = 200) -> str:
    """``repr`` for messages, not longer than ``most`` letters."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]} …"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns ``" Did you mean 'x'?"`` or, when nothing is close, the sorted known words."""
    known = sorted(known)
    word = word[:_LONGEST_WORD]  # comparing takes the product of the lengths
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Known: {', '.join(known)}." if known else ""
