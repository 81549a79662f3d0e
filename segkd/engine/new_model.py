"""Builds further networks for methods: peers of the student."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from segkd.config.schema import ModelConfig, RunConfig
from segkd.engine.placement import with_shared_statistics
from segkd.errors import ConfigError, SegKDError
from segkd.models.build import build_network
from segkd.models.network import Network
from segkd.runtime import Runtime


@dataclass(frozen=True)
class NewModel:
    """``BuildContext.new_model`` of one entry of ``methods:``.

    Attributes:
        entry: ``methods.NAME``, for messages.
        config: the run.
        runtime: processes and device.
        classes: names, in the order of the data.
        built: whether the student was built from ``config``, and is no module of the caller's.
    """

    entry: str
    config: RunConfig
    runtime: Runtime
    classes: Sequence[str]
    built: bool

    def __call__(self, config: Mapping[str, Any] | None, key: str = "") -> Network:
        """A network with initial weights of its own.

        Args:
            config: keys as of ``student:``; None: those of the student.
            key: where they stand within the entry.

        Raises:
            ConfigError: it cannot be built, or would be equal to the student.
        """
        where = f"{self.entry}.{key}" if key else self.entry
        student = self.config.student
        if config is None and (student.checkpoint or not self.built):
            raise ConfigError(f"{where}: another network like the student {self._why_not()}")
        try:
            model = student if config is None else ModelConfig.model_validate(config)
            network = build_network(model, len(self.classes), self.classes)
        except (SegKDError, ValidationError) as error:
            raise ConfigError(f"{where}: {error}") from error
        shared = self.config.runtime.sync_bn
        return with_shared_statistics(network, self.runtime) if shared else network

    def _why_not(self) -> str:
        why = "cannot be built, since the student is a module of your own"
        if self.built:
            why = f"would begin with the same weights ({self.config.student.checkpoint})"
            why += " and stay equal to it"
        return (
            f"{why}. Describe the peer by keys as of `student:`, e.g. "
            f"{self.entry}.peers={{second: {{arch: fpn, encoder: resnet18}}}}"
        )
