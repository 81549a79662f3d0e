"""Errors caused by the user. Messages say what was got, where, and what to type."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator

_LONGEST_WORD = 100


class SegKDError(ValueError):
    """A user error: shown as one message without a traceback, with exit code 2."""

    def at(self, place: str) -> "SegKDError":
        """The same error with the place where it was raised, e.g. ``teachers.main``, before it."""
        return type(self)(f"{place}: {self}")


class FormerName(FutureWarning):
    """A name of an earlier version was used, which still works."""


class ConfigError(SegKDError):
    """A configuration that cannot be run."""


class FolderInUseError(ConfigError):
    """Another process trains in the folder of a run."""


class DataError(SegKDError):
    """A dataset, image or mask that is missing, broken, or out of range."""


class MissingSetError(DataError):
    """No files of a dataset where it was looked for.

    Attributes:
        found: what was looked for, and where.
        elsewhere: where else the set may be put.
    """

    found = elsewhere = ""

    @classmethod
    def of(
        cls, found: str, option: str = "data.root=FOLDER", elsewhere: str = ""
    ) -> "MissingSetError":
        """The error with ``option`` as the one that names the folder."""
        error = cls(f"{found}\nSet {option}{elsewhere}.")
        error.found, error.elsewhere = found, elsewhere
        return error


@contextlib.contextmanager
def folder_named_by(option: str, elsewhere: bool = True) -> Iterator[None]:
    """The message about a dataset that is missing in this context names ``option``.

    Args:
        option: such as ``--root FOLDER``.
        elsewhere: whether the set may be in one of the usual places as well.
    """
    try:
        yield
    except MissingSetError as error:
        places = error.elsewhere if elsewhere else ""
        raise MissingSetError.of(error.found, option, places) from None


class CheckpointError(SegKDError):
    """A file that is not a segkd checkpoint, or does not match the network."""


class TrainingError(SegKDError):
    """A training that cannot continue, e.g. because a loss is not finite."""


class MachineError(SegKDError):
    """A command failed for lack of memory or disk space, or because a process was killed."""


class Interrupted(SegKDError):
    """A training ended by SIGINT, SIGTERM or SIGHUP; the message says what was saved.

    Args:
        message: for the user.
        signal_number: of the signal.

    Attributes:
        exit_code: 128 + signal number, as shells report it.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


# Exceptions of code that is called with values of wrong types or sizes.
ODD_VALUES = (
    *(ValueError, TypeError, LookupError, RuntimeError, AttributeError),
    *(ArithmeticError, AssertionError),
)


def shortened(value: object, most: int = 200) -> str:
    """``repr`` for messages, cut after ``most`` characters."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]} …"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` or, if no known word is close, a list of them."""
    known = sorted(set(known))
    word = word[:_LONGEST_WORD]  # the time of a comparison is the product of the lengths
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Known: {', '.join(known)}." if known else ""
