"""What images are normalised with: given statistics, or those of the pretrained weights."""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segkd.config.schema import ModelConfig, Normalize
from segkd.errors import ConfigError

Statistics = tuple[list[float], list[float]]

IMAGENET: Statistics = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
UNIT: Statistics = ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])
_NAMED = {"imagenet": IMAGENET, "none": UNIT}
_CONFIG = "config.json"  # of a hub repository, beside the weights


@dataclass(frozen=True)
class Normalization:
    """The statistics of one network, on the scale 0..1, RGB.

    Attributes:
        key: as ``normalize:`` has it; never ``auto``.
        origin: where they come from, for messages.
        warning: how they contradict the weights; empty if they do not.
    """

    key: Normalize
    origin: str
    warning: str = ""

    @property
    def statistics(self) -> Statistics:
        return statistics(self.key)

    def __str__(self) -> str:
        return f"normalize: {shown(self.statistics)} ({self.origin})"


def normalization(config: ModelConfig, *, download: bool = False) -> Normalization:
    """What a configured network normalises with, and whether this contradicts its weights.

    ``auto`` is what the encoder's pretrained weights were trained with; ImageNet's statistics for
    random weights, and for weights of which it is not known.

    Args:
        download: the facts of weights that come from a hub may be fetched there.

    Raises:
        ConfigError: ``normalize`` is no pair of three numbers each.
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
        f"'{config.weights}' of {config.encoder} were trained with {shown(trained)}. Remove "
        "`normalize` to use theirs"
    )
    return Normalization(config.normalize, "as configured", warning)


def of_file(saved: ModelConfig, configured: Normalize) -> Normalization:
    """What a student's file says; a configured contradiction is not followed, but a warning."""
    own = Normalization(saved.normalize, "of the checkpoint")
    if configured == "auto" or same(statistics(configured), own.statistics):
        return own
    warning = (
        f"normalize: {shown(statistics(configured))} is configured, but the checkpoint was "
        f"trained with {shown(own.statistics)}, which is used. Remove `normalize`"
    )
    return Normalization(own.key, own.origin, warning)


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
    """The statistics as ``normalize:`` has them: by name where they have one."""
    return next((name for name, known in _NAMED.items() if known == pair), pair)


def same(one: Statistics, other: Statistics) -> bool:
    """Whether two pairs are the same to four digits, as people write them."""
    pairs = zip([*one[0], *one[1]], [*other[0], *other[1]], strict=True)
    return all(abs(a - b) <= 1e-3 * max(abs(a), abs(b)) for a, b in pairs)


def of_weights(config: ModelConfig, *, download: bool = False) -> Statistics | None:
    """What the encoder's pretrained weights were trained with; None if there are none, or if it
    is not known here.

    A file for an encoder of timm counts as timm's.
    """
    if config.weights is None:
        return None
    from segkd.models.encoder_weights import is_file, repository_of, timm_name

    name = timm_name(config.encoder)
    if is_file(config.weights) or (name and "/" not in config.weights):
        return _of_timm(name)
    with contextlib.suppress(ConfigError):  # no such weights: their loading says so
        return _of_hub(*repository_of(config), download=download) or _of_timm(name)
    return None


def _of_timm(name: str) -> Statistics | None:
    if not name:
        return None
    import timm

    with contextlib.suppress(RuntimeError):  # an unknown tag: the making of the encoder says so
        facts = timm.get_pretrained_cfg(name)
        return None if facts is None else (list(facts.mean), list(facts.std))
    return None


def _of_hub(repository: str, revision: str | None, *, download: bool) -> Statistics | None:
    """What ``config.json`` of a repository says, which smp's have, and timm's."""
    import huggingface_hub as hub

    path = hub.try_to_load_from_cache(repository, _CONFIG, revision=revision)
    if not isinstance(path, str) and download:
        with contextlib.suppress(Exception):  # the weights that lie beside it say what is wrong
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
    mean, std = (" ".join(f"{value:.4g}" for value in values) for values in pair)
    return f"mean {mean}, std {std}"
