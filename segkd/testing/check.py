"""Named checks with a reason: lists of them, how they are run, and what a failure says."""

import random
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ValidationError

import segkd
from segkd.config.problems import explain, raise_if
from segkd.errors import ConfigError, did_you_mean
from segkd.yaml_tree import from_plain

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)
_OWN = (str(Path(segkd.__file__).parent / "testing"),)


class CheckFailed(AssertionError):
    """At least one check did not hold; the message names each, what was seen, and why it matters.

    Attributes:
        failed: by name of the check, what was seen.
    """

    def __init__(self, message: str, failed: Mapping[str, str]) -> None:
        super().__init__(message)
        self.failed = dict(failed)


class NotApplicable(Exception):
    """Raised by a check that has nothing to look at; its message says why."""


def refuse_beside_instance(check: str, given: Mapping[str, object]) -> None:
    """Refuses arguments that say how to make what has been made already.

    Args:
        check: name of the function.
        given: arguments by name; None: not given.

    Raises:
        ConfigError: names those that were given.
    """
    unread = [name for name, value in given.items() if value is not None]
    if unread:
        raise ConfigError(
            f"{check}: got an instance, which is checked as it is, and {', '.join(unread)}, which "
            "would change nothing. Leave that out, or give the class"
        )


def validated(check: str, model: type[Model], keys: Mapping[str, Any]) -> Model:
    """The configuration of plain keys.

    Args:
        check: name of the function, for the message.
        model: class of the configuration.
        keys: as the caller gave them.

    Raises:
        ConfigError: unknown keys, or values that they cannot have.
    """
    try:
        return model.model_validate(dict(keys))
    except ValidationError as error:
        raise_if(explain(error, from_plain(dict(keys), check), model), check)
        raise


@dataclass(frozen=True)
class Check(Generic[T]):
    """One thing that must hold.

    Attributes:
        name: what it is called, e.g. in ``only`` and ``skip``.
        demand: what must hold, one sentence.
        reason: why this matters to the user.
        run: looks at a subject; raises AssertionError, or ``NotApplicable``.
    """

    name: str
    demand: str
    reason: str
    run: Callable[[T], None]


@dataclass
class Report:
    """What became of the checks that were asked for; a failure is raised, not reported.

    Attributes:
        subject: name of what was looked at.
        passed: names of checks that hold.
        skipped: by name of a check that did not run, why.
    """

    subject: str
    passed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.subject}: {len(self.passed)} checks passed"]
        return "\n".join([*lines, *(f"  {k}: skipped, {why}" for k, why in self.skipped.items())])


class CheckList(Generic[T]):
    """The checks of one kind of thing, in the order in which they are written.

    Args:
        kind: what they look at: method, network or dataset.
        parts: lists whose checks it begins with.
    """

    def __init__(self, kind: str, *parts: "CheckList[T]") -> None:
        self.kind = kind
        self._checks: dict[str, Check[T]] = {c.name: c for part in parts for c in part}

    def __iter__(self) -> Iterator[Check[T]]:
        return iter(self._checks.values())

    @property
    def names(self) -> list[str]:
        """Names of the checks, in order."""
        return list(self._checks)

    def add(self, reason: str) -> Callable[[Callable[[T], None]], Callable[[T], None]]:
        """Decorator: a function is a check of its name; its docstring is what it demands."""

        def register(function: Callable[[T], None]) -> Callable[[T], None]:
            demand = " ".join((function.__doc__ or "").split())
            self.put(function.__name__, demand, reason, function)
            return function

        return register

    def put(self, name: str, demand: str, reason: str, run: Callable[[T], None]) -> None:
        """Adds a check. Raises ValueError if there is one of its name."""
        if name in self._checks:
            raise ValueError(f"there is a check '{name}' already")
        self._checks[name] = Check(name, demand, reason, run)

    def run(
        self,
        subject: T,
        name: str,
        *,
        only: str | Collection[str] = (),
        skip: Mapping[str, str] | None = None,
        exempt: Mapping[str, str] | None = None,
    ) -> Report:
        """Runs all checks, or those of ``only``.

        Args:
            subject: what is looked at.
            name: of the subject, for messages.
            only: names of the checks to run; empty: all.
            skip: checks to leave out, each with the reason.
            exempt: the same, as the subject declares it.

        Raises:
            CheckFailed: with everything that does not hold.
            ConfigError: there is no check of that name, or a reason is missing.
        """
        chosen = [only] if isinstance(only, str) else list(only)
        left_out = {**(exempt or {}), **(skip or {})}
        self._require_known(chosen, "only")
        self._require_known(exempt or {}, f"exempt of {name}")
        self._require_known(skip or {}, "skip")
        for key, why in left_out.items():
            if not (isinstance(why, str) and why.strip()):
                raise ConfigError(f"skip: '{key}' is left out without a reason. Say why")
        report = Report(name)
        failed: dict[str, str] = {}
        for check in self:
            if chosen and check.name not in chosen:
                continue
            if check.name in left_out:
                report.skipped[check.name] = left_out[check.name]
                continue
            try:
                check.run(subject)
            except NotApplicable as nothing:
                report.skipped[check.name] = str(nothing)
            except Exception as error:  # whatever the subject's own code may raise
                failed[check.name] = _seen(error)
            else:
                report.passed.append(check.name)
        if failed:
            raise CheckFailed(self._message(name, failed), failed)
        return report

    def _require_known(self, names: Collection[str], where: str) -> None:
        for name in names:
            if name not in self._checks:
                raise ConfigError(
                    f"{where}: there is no check '{name}' of a {self.kind}."
                    f"{did_you_mean(name, self._checks)}"
                )

    def _message(self, name: str, failed: Mapping[str, str]) -> str:
        one = next(iter(failed))
        parts = [f"{self.kind} '{name}': {', '.join(failed)} failed"]
        for check, seen in failed.items():
            known = self._checks[check]
            parts.append(f"{check}: {known.demand}\n  seen: {seen}\n  why:  {known.reason}")
        parts.append(
            f'One alone: only="{one}". To leave one out: skip={{"{one}": "the reason"}}, or '
            "the class attribute `exempt`, with such entries"
        )
        return "\n\n".join(parts)


def require(holds: bool, seen: str) -> None:
    """Raises AssertionError with what was seen unless ``holds``."""
    if not holds:
        raise AssertionError(seen)


def require_finds(found: Collection[str], seen: str) -> None:
    """Raises AssertionError that lists what was found, if anything was."""
    require(not found, f"{seen}: {', '.join(map(str, found))}")


def global_generators() -> tuple[object, ...]:
    """The states of the global generators of torch, numpy and Python, to be compared by ``==``."""
    state = np.random.get_state()
    assert isinstance(state, tuple)  # a dict only where it is asked for
    return torch.get_rng_state().tolist(), state[1].tolist(), random.getstate()


def _seen(error: Exception) -> str:
    """What a check saw; of an error that is not the check's own also where it was raised."""
    if isinstance(error, AssertionError) and str(error):
        return _indented(str(error))
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith(_OWN)]
    theirs = [f for f in theirs if "/torch/" not in f.filename] or theirs or list(frames)
    where = f" at {theirs[-1].filename}:{theirs[-1].lineno}, `{theirs[-1].line}`"
    return _indented(f"{type(error).__name__}: {error}{where}")


def _indented(text: str) -> str:
    return text.strip().replace("\n", "\n        ")
