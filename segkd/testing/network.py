"""``check_network``: whether a network can be any run's student or teacher."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch

from segkd.config.schema import ModelConfig
from segkd.errors import ConfigError
from segkd.models.build import build_network
from segkd.models.network import Network
from segkd.testing import network_outputs, network_state
from segkd.testing.check import CheckList, Report, refuse_beside_instance, validated
from segkd.testing.network_subject import NetworkSubject

NETWORK_CHECKS: CheckList[NetworkSubject] = CheckList(
    "network", network_outputs.CHECKS, network_state.CHECKS
)
_CLASSES = 5  # unless told otherwise


def check_network(
    network: type[Network] | Network | str,
    config: ModelConfig | Mapping[str, Any] | None = None,
    *,
    classes: int | None = None,
    least: int = 32,
    only: str | Collection[str] = (),
    skip: Mapping[str, str] | None = None,
) -> Report:
    """Runs a network on small random images, in training and in evaluation.

    Args:
        network: its class, the name of an architecture (of segkd, a plug-in or
            segmentation-models-pytorch), or one that is built: ``segkd.models.module.wrap`` makes
            one of any module.
        config: keys of ``student:`` for a class or a name, e.g. ``{"options": {"width": 8}}``.
        classes: number of classes to build a class or a name for; default: 5.
        least: smallest height and width of images; 32 leaves something to five stages of stride 2,
            some decoders need more.
        only: names of checks to run, see ``NETWORK_CHECKS``; empty: all.
        skip: checks to leave out, each with the reason; a class may declare them as ``exempt``.

    Returns:
        Which checks passed, and which were skipped and why.

    Raises:
        CheckFailed: an AssertionError that names each check that does not hold, what was seen,
            and why it matters.
        ConfigError: an unknown name or option, or what a network that is built does not need.
    """
    subject = replace(_subject(network, config, classes), least=least)
    exempt = getattr(type(subject.prototype), "exempt", None)
    title = subject.prototype.title
    return NETWORK_CHECKS.run(subject, title, only=only, skip=skip, exempt=exempt)


def _subject(
    network: object, config: ModelConfig | Mapping[str, Any] | None, classes: int | None
) -> NetworkSubject:
    if isinstance(network, Network):
        refuse_beside_instance("check_network", {"config": config, "classes": classes})
        return NetworkSubject(network)
    keys = config.model_dump() if isinstance(config, ModelConfig) else dict(config or {})
    if isinstance(network, str):
        model = validated("check_network", ModelConfig, {**keys, "arch": network})

        def build(number: int) -> Network:
            return build_network(model, number)

    elif isinstance(network, type) and issubclass(network, Network):
        model = validated("check_network", ModelConfig, {**keys, "arch": network.name})
        kind = network

        def build(number: int) -> Network:
            return kind(model, number, **model.options)

    else:
        raise ConfigError(
            f"check_network: got {network!r}, expected a class derived from segkd.models.network."
            "Network, an instance of one (segkd.models.module.wrap makes one of a module), or the "
            "name of an architecture"
        )
    torch.manual_seed(0)
    return NetworkSubject(build(_CLASSES if classes is None else classes), build)
