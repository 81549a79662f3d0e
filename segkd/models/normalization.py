"""Mean and std of images: as configured, or those of the pretrained weights."""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from segkd import registry
from segkd.config.schema import ModelConfig, Normalize
from segkd.errors import ConfigError, SegKDError
from segkd.models.hub import require_reachable

Statistics = tuple[list[float], list[float]]

IMAGENET: Statistics = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
UNIT: Statistics = ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])
_NAMED = {"imagenet": IMAGENET, "none": UNIT}
_CONFIG = "config.json"  # of a hub repository


@dataclass(frozen=True)
class Normalization:
    """The statistics of one network, on the scale 0..1, RGB.

    Attributes:
        key: value of ``normalize:``; never ``auto``.
        origin: where they come from, for messages.
        warning: how they contradict the weights; empty if they do not.
    """

    key: Normalize
    origin: str
    warning: str = ""

    @property
    def statistics(self) -> Statistics:
        """(mean, std), three numbers each."""
        return statistics(self.key)

    def __str__(self) -> str:
        return f"normalize: {shown(self.statistics)} ({self.origin})"


def normalization(config: ModelConfig, *, download: bool = False) -> Normalization:
    """The statistics of a configured network, and whether they contradict its weights.

    ``auto`` means the statistics that the encoder's pretrained weights were trained with, or
    ImageNet's for random weights and where they are unknown.

    Args:
        config: the network.
        download: whether facts about weights from a hub may be downloaded.

    Raises:
        ConfigError: ``normalize`` is not a pair of three numbers each.
    """
    trained = of_weights(config, download=download)
    if config.normalize == "auto":
        if trained is not None:
            return Normalization(as_key(trained), "of the weights")
        unknown = "; not known for these weights" if config.weights else ""
        return Normalization("imagenet", f"ImageNet's, the default{unknown}")
    given = Normalization(config.normalize, "as configured")
    if trained is None or same(given.statistics, trained):
        return given
    warning = (
        f"normalize: {shown(given.statistics)} is configured, but the weights "
        f"'{config.weights}' of {config.encoder or config.arch} were trained with "
        f"{shown(trained)}. Remove `normalize` to use theirs"
    )
    return Normalization(config.normalize, "as configured", warning)


def of_file(saved: ModelConfig, configured: Normalize) -> Normalization:
    """The statistics of a student's file, with a warning if others are configured.

    Args:
        saved: the configuration in the file.
        configured: value of ``normalize:``.

    Raises:
        ConfigError: ``configured`` is not a pair of three numbers each.
    """
    own = Normalization(saved.normalize, "of the checkpoint")
    if configured == "auto" or same(statistics(configured), own.statistics):
        return own
    warning = (
        f"normalize: {shown(statistics(configured))} is configured, but the checkpoint was "
        f"trained with {shown(own.statistics)}, which is used. Remove `normalize`"
    )
    return Normalization(own.key, own.origin, warning)


def of_model(own: Statistics, configured: Normalize) -> Normalization:
    """The statistics of a model of another library: its own, or configured ones with a warning.

    Args:
        own: as the model's files say.
        configured: value of ``normalize:``.

    Raises:
        ConfigError: ``configured`` is not a pair of three numbers each.
    """
    if configured == "auto" or same(statistics(configured), own):
        return Normalization(as_key(own), "of the model")
    warning = (
        f"normalize: {shown(statistics(configured))} is configured, but the model was trained "
        f"with {shown(own)}. Remove `normalize` to use these"
    )
    return Normalization(configured, "as configured", warning)


def statistics(key: Normalize) -> Statistics:
    """(mean, std) on the scale 0..1. Raises ConfigError if these are not 3 numbers each."""
    if isinstance(key, str):
        return _NAMED[key]
    mean, std = key
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ConfigError(
            f"normalize: got {[mean, std]}, expected [mean, std] with 3 numbers each on the "
            "scale 0..1 and std above 0, or auto, imagenet, or none"
        )
    return mean, std


def as_key(pair: Statistics) -> Normalize:
    """The value of ``normalize:`` for some statistics: a name if they have one."""
    if pair == IMAGENET:
        return "imagenet"
    return "none" if pair == UNIT else pair


def same(one: Statistics, other: Statistics) -> bool:
    """Whether two pairs agree up to rounding to four digits."""
    pairs = zip([*one[0], *one[1]], [*other[0], *other[1]], strict=True)
    return all(abs(a - b) <= 1e-3 * max(abs(a), abs(b)) for a, b in pairs)


def of_weights(config: ModelConfig, *, download: bool = False) -> Statistics | None:
    """The statistics that the encoder's pretrained weights were trained with.

    Args:
        config: the network; for weights in a file those of its timm encoder are assumed.
        download: whether facts about weights from a hub may be downloaded.

    Returns:
        None without pretrained weights, or if unknown.
    """
    if config.weights is None:
        return None
    from segkd.models.encoder_weights import is_file, located, repository_of, timm_name

    if is_file(config.weights) and (own_run := _of_student(located(config.weights))):
        return own_run
    if config.arch in registry.models:  # one of segkd's own may know files of its encoder
        of_own_file = getattr(registry.models.get(config.arch), "statistics_of_file", None)
        if of_own_file is not None:
            with contextlib.suppress(SegKDError):  # reported when the file is loaded
                return of_own_file(config.weights)
            return None
    name = timm_name(config.encoder)
    if is_file(config.weights) or (name and "/" not in config.weights):
        return _of_timm(name)
    with contextlib.suppress(ConfigError):  # no such weights: reported when they are loaded
        return _of_hub(*repository_of(config), download=download) or _of_timm(name)
    return None


def _of_student(path: Path) -> Statistics | None:
    """The statistics of a student's file of segkd; None for other files."""
    from segkd.models.weights import load_student_file

    with contextlib.suppress(SegKDError, ValidationError):  # told when the weights are loaded
        return statistics(ModelConfig.model_validate(load_student_file(path)["model"]).normalize)
    return None


def _of_timm(name: str) -> Statistics | None:
    if not name:
        return None
    import timm

    with contextlib.suppress(RuntimeError):  # an unknown tag: reported when it is created
        facts = timm.get_pretrained_cfg(name)
        return None if facts is None else (list(facts.mean), list(facts.std))
    return None


def _of_hub(repository: str, revision: str | None, *, download: bool) -> Statistics | None:
    """The statistics in ``config.json`` of a repository of smp or timm."""
    import huggingface_hub as hub

    path = hub.try_to_load_from_cache(repository, _CONFIG, revision=revision)
    if not isinstance(path, str) and download:
        with contextlib.suppress(Exception):  # reported when the weights are loaded
            require_reachable()
            path = hub.hf_hub_download(repository, _CONFIG, revision=revision)
    if not isinstance(path, str):
        return None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        facts = json.loads(Path(path).read_text(encoding="utf-8"))
        facts = facts.get("pretrained_cfg", facts)
        if facts.get("input_space", "RGB") != "RGB":
            return None
        scale = 1.0 / float((facts.get("input_range") or [0, 1])[1])
        pair = [[float(v) * scale for v in facts[key]] for key in ("mean", "std")]
        return statistics((pair[0], pair[1]))
    return None


def shown(pair: Sequence[Sequence[float]]) -> str:
    """``mean … …, std … …`` with four digits."""
    mean, std = (" ".join(f"{value:.4g}" for value in values) for values in pair)
    return f"mean {mean}, std {std}"
