"""What the doctor reports."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from segkd.errors import SegKDError


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: ``error``: a run would not start, or stop soon; ``warning``: it would start.
        about: the part of the machine or of the config.
        text: what was found.
        repair: what to do or to type; may be in ``text`` where the message is an error's own.
    """

    level: Literal["ok", "warning", "error"]
    about: str
    text: str
    repair: str = ""


@contextmanager
def reported(about: str, found: list[Finding]) -> Iterator[None]:
    """Turns whatever is raised inside into a finding: a doctor must not fall ill."""
    try:
        yield
    except SegKDError as error:
        found.append(Finding("error", about, str(error)))
    except Exception as error:  # e.g. smp that cannot be imported, memory that is not enough
        text = f"{type(error).__name__}: {error}".partition("\n")[0]
        repair = "If a package is named, reinstall it; otherwise please report this"
        if type(error).__name__ in ("OutOfMemoryError", "MemoryError"):
            repair = "Use a smaller data.batch_size or data.crop, or more optim.accumulate"
        found.append(Finding("error", about, text, repair))
