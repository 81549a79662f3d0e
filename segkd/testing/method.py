"""``check_method``: whether a distillation method keeps what segkd promises of any method."""

from collections.abc import Collection, Mapping
from typing import Any

from segkd import registry
from segkd.errors import ConfigError
from segkd.methods.base import Method, MethodConfig
from segkd.testing import (
    method_engine,
    method_masks,
    method_numbers,
    method_terms,
    method_weights,
)
from segkd.testing.check import CheckList, Report, validated
from segkd.testing.method_subject import MethodSubject

METHOD_CHECKS: CheckList[MethodSubject] = CheckList(
    "method",
    *(method_terms.CHECKS, method_numbers.CHECKS, method_weights.CHECKS),
    *(method_masks.CHECKS, method_engine.CHECKS),
)


def check_method(
    method: type[Method] | Method | str,
    config: MethodConfig | Mapping[str, Any] | None = None,
    *,
    only: str | Collection[str] = (),
    skip: Mapping[str, str] | None = None,
) -> Report:
    """Holds a method to the promises of segkd, on small random outputs of its own making.

    Each check builds the method anew, for a student and, where the method needs one, a teacher
    with the taps that it declares, of unequal channels and strides, in float64 or float32.

    Args:
        method: its class, an instance (its configuration counts), or its registered name.
        config: keys of its ``Config``; None: the defaults.
        only: names of checks to run, see ``METHOD_CHECKS``; empty: all.
        skip: checks to leave out, each with the reason. What a method cannot hold by its nature
            stands in its class attribute ``exempt`` instead.

    Returns:
        Which checks passed, and which were skipped and why.

    Raises:
        CheckFailed: an AssertionError that names each check that does not hold, what was seen,
            and why it matters.
        ConfigError: an unknown name, or keys that the method does not know.
    """
    subject = _subject(method, config)
    name = str(getattr(subject.kind, "name", subject.kind.__name__))
    return METHOD_CHECKS.run(subject, name, only=only, skip=skip, exempt=subject.kind.exempt)


def _subject(method: object, config: MethodConfig | Mapping[str, Any] | None) -> MethodSubject:
    if isinstance(method, str):
        method = registry.methods.get(method)
    if isinstance(method, Method):
        config = method.config if config is None else config
        method = type(method)
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise ConfigError(
            f"check_method: got {method!r}, expected a class derived from segkd.methods.base."
            "Method, an instance of one, or the name of a registered one"
        )
    if not isinstance(config, MethodConfig):
        config = validated("check_method", method.Config, config or {})
    return MethodSubject(method, config)
