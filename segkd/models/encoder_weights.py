"""Pretrained weights of an encoder: by name from an installed package, smp or timm, a hub
repository, or a file."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from segkd import checkpoint
from segkd.config.schema import ModelConfig
from segkd.errors import CheckpointError, ConfigError, SegKDError
from segkd.models.efficientnet_map import is_efficientnet, timm_efficientnet
from segkd.models.foreign import read_state
from segkd.models.hub import require_reachable
from segkd.models.packaged_weights import how_to_install, installed_file, is_installed

_FILE = "model.safetensors"
_HUB_FILES = (_FILE, "pytorch_model.bin")  # timm takes either
_SUFFIXES = {".pt", ".pth", ".bin", ".safetensors"}


def from_timm(config: ModelConfig) -> bool:
    """Whether timm downloads the weights when it creates the encoder.

    For its encoders, ``imagenet`` means the pretrained tag in the name (``tu-resnet50.a1_in1k``),
    or timm's default tag.

    Raises:
        ConfigError: timm has no pretrained weights of this encoder.
    """
    if not config.encoder.startswith("tu-") or config.weights != "imagenet":
        return False
    if is_installed(config.encoder):
        return False
    import timm

    if not timm.models.is_model_pretrained(config.encoder.removeprefix("tu-")):
        raise ConfigError(
            f"weights: timm has no pretrained weights of '{config.encoder}'. Use null, or a file"
        )
    return True


def are_here(config: ModelConfig) -> bool:
    """Whether ``config.weights`` are available without a download.

    Raises:
        ConfigError: the encoder has no such weights.
        CheckpointError: the file does not exist.
    """
    path = located(str(config.weights))
    if config.weights is None or path.is_file() or _is_packaged(config):
        return True
    if path.suffix.lower() in _SUFFIXES:
        raise CheckpointError(f"weights: there is no file {path}")
    from huggingface_hub import try_to_load_from_cache

    repository, revision = _on_hub(config)
    if not repository:
        return False
    found = (try_to_load_from_cache(repository, f, revision=revision) for f in _HUB_FILES)
    return any(isinstance(file, str) for file in found)


def _on_hub(config: ModelConfig) -> tuple[str, str | None]:
    """Hub repository and revision; an empty one if timm downloads the weights from elsewhere."""
    if not from_timm(config):
        return repository_of(config)
    import timm

    facts = timm.get_pretrained_cfg(config.encoder.removeprefix("tu-"))
    return (facts.hf_hub_id if facts else None) or "", None


def load_encoder_weights(encoder: nn.Module, config: ModelConfig) -> None:
    """Loads ``config.weights`` into the encoder of an smp model: a file, a hub id, or a name.

    ImageNet weights are read from an installed package if there is one.

    Raises:
        ConfigError: the encoder has no such weights.
        CheckpointError: the file does not fit.
        SegKDError: they could not be downloaded.
    """
    source = str(config.weights)
    path = located(source)
    packaged = installed_file(config.encoder) if config.weights == "imagenet" else None
    if packaged is not None:
        path, source = packaged, f"'{source}', {packaged}"
    elif not is_file(source):
        repository, revision = repository_of(config)
        with downloading(config):
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(repository, _FILE, revision=revision))
    _fill(encoder, _read(path), source)


@contextmanager
def downloading(config: ModelConfig) -> Iterator[None]:
    """Turns errors of a download into a message.

    Raises:
        SegKDError: the weights could not be downloaded; says what to do.
    """
    asks = not are_here(config) and bool(_on_hub(config)[0])
    try:
        if asks:
            require_reachable()
        yield
    except Exception as error:  # of the hub, its HTTP client, or the system
        cause = error.__cause__ or error
        first_line = str(cause).partition("\n")[0]
        hint = how_to_install(config.encoder) if config.weights == "imagenet" else ""
        raise SegKDError(
            f"weights: '{config.weights}' of encoder '{config.encoder}' could not be downloaded "
            f"({type(cause).__name__}: {first_line}). Check the connection{hint}, or use "
            f"`weights: null`, or give the path of a local {_FILE}"
        ) from error


def is_file(source: str) -> bool:
    """Whether ``weights:`` means a file, even a missing one, or the folder of a run."""
    path = located(source)
    return path.suffix.lower() in _SUFFIXES or path.is_file()


def located(source: str) -> Path:
    """The path that ``weights:`` may mean; of a run's folder, that of its student."""
    path = Path(source).expanduser()
    best = path / "checkpoints" / "best.pt"
    return best if best.is_file() else path


def timm_name(encoder: str) -> str:
    """timm's name of an encoder with timm's weights; empty for other encoders."""
    if encoder.startswith("timm-tf_efficientnet_lite"):
        return encoder.removeprefix("timm-")
    return encoder.removeprefix("tu-") if encoder.startswith("tu-") else ""


def repository_of(config: ModelConfig) -> tuple[str, str | None]:
    """Hub repository and revision of ``weights:``, a hub id or a name in smp.

    Raises:
        ConfigError: smp has no weights of that name.
    """
    source = str(config.weights)
    return (source, None) if "/" in source else _offered(config)


def _is_packaged(config: ModelConfig) -> bool:
    return config.weights == "imagenet" and is_installed(config.encoder)


def _offered(config: ModelConfig) -> tuple[str, str]:
    """Repository and revision of weights by their name in smp."""
    from segmentation_models_pytorch.encoders import encoders

    smp_encoder = encoders.get(config.encoder, {})
    offered = smp_encoder.get("pretrained_settings") or {}
    if config.weights not in offered:
        names = ", ".join(sorted(offered)) or ("imagenet" if not smp_encoder else "none")
        raise ConfigError(
            f"weights: '{config.encoder}' has no weights '{config.weights}'. Available: {names}. "
            "Use one of them, null, a hub id, or the path of a file"
        )
    return offered[config.weights]["repo_id"], offered[config.weights]["revision"]


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, with the checks for those of a whole network."""
    if not path.is_file():
        raise CheckpointError(f"weights: there is no file {path}")
    try:
        return read_state(path)
    except CheckpointError as error:
        raise CheckpointError(f"weights: {error}") from error


def _fill(encoder: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Loads all weights of the encoder; other tensors of the file (a classifier) are ignored."""
    own = encoder.state_dict()
    if is_efficientnet(state) and not is_efficientnet(own):
        state = timm_efficientnet(state)
    state = checkpoint.with_counters(own, state)
    given = {_canonical(key): key for key in state}
    missing = [key for key in own if _canonical(key) not in given]
    if missing:
        raise CheckpointError(
            f"weights: {what} does not fit the encoder: {len(missing)} of its {len(own)} tensors "
            f"are missing, e.g. {', '.join(missing[:3])}; the file has e.g. "
            f"{', '.join(list(state)[:3])}"
        )
    found = {key: state[given[_canonical(key)]] for key in own}
    checkpoint.require_finite(found, f"weights: {what}")
    checkpoint.restore(encoder, found, f"weights: {what}")


def _canonical(key: str) -> str:
    """The common name of a tensor in plain encoders, whole models and timm's extractors."""
    key = re.sub(r"^(module\.|encoder\.|model\.)+", "", key)
    # timm's feature extractors flatten the first level: stages.0.x is called stages_0.x there.
    return re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", key)
