"""Builds further networks for methods: peers of the student."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from segkd.config.schema import ModelConfig, RunConfig
from segkd.engine.placement import with_shared_statistics
from segkd.errors import ConfigError, SegKDError
from segkd.models.build import build_network
from segkd.models.module import OWN
from segkd.models.network import Network
from segkd.runtime import Runtime

_RESET = "reset_parameters"


@dataclass(frozen=True)
class NewModel:
    """``BuildContext.new_model`` of one entry of ``methods:``.

    Attributes:
        entry: ``methods.NAME``, for messages.
        config: the run.
        runtime: processes and device.
        classes: names, in the order of the data.
        student: the student.
        built: whether it was built from ``config``, and not given by the caller.
        warnings: what the log should say is appended.
    """

    entry: str
    config: RunConfig
    runtime: Runtime
    classes: Sequence[str]
    student: Network
    built: bool
    warnings: list[str] = field(default_factory=list)

    def __call__(self, config: Mapping[str, Any] | None, key: str = "") -> Network:
        """A network with initial weights of its own.

        Args:
            config: keys as of ``student:``; None: like the student.
            key: where they stand within the entry.

        Raises:
            ConfigError: it cannot be built.
        """
        where = f"{self.entry}.{key}" if key else self.entry
        try:
            if config is None:
                network = self._like_the_student(where)
            else:
                network = self._network(ModelConfig.model_validate(config))
        except (SegKDError, ValidationError) as error:
            raise ConfigError(f"{where}: {error}") from error
        shared = self.config.runtime.sync_bn
        return with_shared_statistics(network, self.runtime) if shared else network

    def _network(self, model: ModelConfig) -> Network:
        return build_network(model, len(self.classes), self.classes)

    def _like_the_student(self, where: str) -> Network:
        """Of the same architecture, but never with the weights that the student was trained to."""
        given, own = self.config.student, self.student.config
        if self.built and not given.checkpoint:
            return self._network(given)
        if given.checkpoint and self.built:
            self.warnings.append(
                f"{where}: a network like the student begins with random weights, but the student "
                f"with those of {given.checkpoint}: at first it teaches noise. Begin later "
                f"({self.entry}.start=STEPS), or describe a trained network by keys as of "
                f"`student:`, e.g. {self.entry}.peers={{second: {{checkpoint: FILE}}}}"
            )
        if own.arch != OWN:
            fresh: dict[str, Any] = {"checkpoint": None, "weights": None, "classes": []}
            return self._network(own.model_copy(update=fresh))
        return initialized_anew(self.student)


def initialized_anew(network: Network) -> Network:
    """A copy of a network whose layers are initialised by their ``reset_parameters``.

    Raises:
        ConfigError: no layer has such a method, so that the copy would be equal to the network.
    """
    copied = copy.deepcopy(network)
    resets = [reset for part in copied.modules() if (reset := getattr(part, _RESET, None))]
    if not resets:
        raise ConfigError(
            "the student is a module without layers that can be initialised anew (by a method "
            "`reset_parameters`). Describe the peer by keys as of `student:`"
        )
    for reset in resets:
        reset()
    return copied
