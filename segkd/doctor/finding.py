"""Findings of the doctor."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from segkd.errors import SegKDError

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One result of a check.

    Attributes:
        level: ``error``: a run would not start, or fail soon; ``warning``: it would start.
        about: the part of the machine or of the config.
        text: what was found.
        repair: what to do or to type; may be part of ``text``.
    """

    level: Level
    about: str
    text: str
    repair: str = ""


@contextmanager
def reported(about: str, found: list[Finding]) -> Iterator[None]:
    """Appends any exception of the body to ``found`` as an error about ``about``."""
    try:
        yield
    except SegKDError as error:
        found.append(Finding("error", about, str(error)))
    except Exception as error:  # e.g. a broken installation of smp, not enough memory
        text = f"{type(error).__name__}: {error}".partition("\n")[0]
        repair = "If a package is named, reinstall it; otherwise please report this"
        if type(error).__name__ in ("OutOfMemoryError", "MemoryError"):
            repair = "Use a smaller data.batch_size or data.crop, or more optim.accumulate"
        found.append(Finding("error", about, text, repair))
