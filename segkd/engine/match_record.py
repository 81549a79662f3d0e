"""``match.json`` in a run's folder: to how many steps ``match: seconds`` has matched the run."""

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from segkd.config.load import RESUMABLE_KEYS, comparable
from segkd.config.schema import RunConfig
from segkd.errors import ConfigError
from segkd.faults import no_space
from segkd.files import write_text
from segkd.texts import json_text

RECORD = "match.json"


@dataclass(frozen=True)
class Match:
    """What a run was matched to, as its folder's match.json has it.

    Attributes:
        steps: of the run.
        seconds_per_step: expected mean over the run.
        budget: seconds of training that the run gets.
        factor: ``match.seconds`` of the recipe.
        baseline: folder of the baseline's run, within the recipe's.
        configured: steps that the recipe says.
        measured: digest of the run whose step was measured; empty in records of version 0.1.
    """

    steps: int
    seconds_per_step: float
    budget: float
    factor: float
    baseline: str
    configured: int
    measured: str = ""

    @property
    def about(self) -> str:
        """A line for the terminal."""
        times = "" if self.factor == 1 else f", {self.factor:g} times those of {self.baseline}"
        return (
            f"match: {self.seconds_per_step:.3g} s/step, so {self.steps} steps (configured: "
            f"{self.configured}) in {self.budget:.4g} s" + (times or f", as {self.baseline}")
        )


def load(folder: Path) -> Match | None:
    """The record of a run's folder; None if it has none. Raises ConfigError if it is damaged."""
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        return Match(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} is damaged: {error}. It says how many steps this run has. Delete {folder} to "
            "measure and train anew"
        ) from error


def digest(config: RunConfig) -> str:
    """Of all that the time of a step may depend on: one for all seeds of a run."""
    values = comparable(config, (*RESUMABLE_KEYS, "seed", "steps"))
    text = re.sub(r"\bseed\d+\b", "seed", json_text(dict(sorted(values.items()))))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def holding(config: RunConfig) -> Match | None:
    """The record of a run, unless the run was corrected since, before its first checkpoint.

    A step of what it is now takes another time. Raises ConfigError like ``load``.
    """
    found, folder = load(folder_of(config)), folder_of(config)
    begun = (folder / "checkpoints" / "last.pt").exists()
    return found if begun or found is None or found.measured in ("", digest(config)) else None


def renew(config: RunConfig, match: Match) -> Match:
    """``store``, also in place of a record that does not hold any more."""
    if holding(config) is None:
        (folder_of(config) / RECORD).unlink(missing_ok=True)
    return store(folder_of(config), match)


def store(folder: Path, match: Match) -> Match:
    """Writes the record, unless there is one; returns the one that is there.

    Raises:
        MachineError: it cannot be written.
    """
    path = folder / RECORD
    scratch = path.with_name(f".{RECORD}.{os.getpid()}")
    try:
        write_text(scratch, json_text(asdict(match), indent=2) + "\n")
        try:
            os.link(scratch, path)  # fails if another command has written it meanwhile
        except FileExistsError:
            return load(folder) or match
        except OSError:  # a file system without links
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        raise no_space(path, error) from error
    return match


def folder_of(config: RunConfig) -> Path:
    """The folder of a run, ``out``."""
    assert config.out is not None  # given by ``expand``
    return Path(config.out)
