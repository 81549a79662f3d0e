"""Entries that differentiate the student's gradient, and what they need of a run."""

from collections.abc import Mapping

from segkd.config.schema import RunConfig
from segkd.errors import ConfigError
from segkd.methods.base import Method


def differentiating(methods: Mapping[str, Method]) -> list[str]:
    """The entries that differentiate outputs themselves."""
    return [name for name, method in methods.items() if method.needs.teacher_gradient]


def check_derivatives(config: RunConfig, entries: list[str]) -> None:
    """Raises ConfigError if the runtime cannot differentiate a gradient, as ``entries`` do."""
    for key in ("compile", "sync_bn"):
        if entries and getattr(config.runtime, key):
            raise ConfigError(
                f"methods.{', '.join(entries)}: differentiates the student's gradient, which torch "
                f"cannot do with runtime.{key}. Set runtime.{key}=false, or remove this entry"
            )
