"""What a run learned from: networks and predictions, so that one that changes later is noticed."""

import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from segkd.config.recipe import checkpoints
from segkd.config.schema import RunConfig
from segkd.errors import CheckpointError, ConfigError, SegKDError
from segkd.models.weights import resolve

Sources = Mapping[str, str]  # digest of a file by the key that names it
_EXTERNAL = (".data", "_data")  # endings of the weights beside an ONNX file


def sources(config: RunConfig) -> dict[str, str]:
    """Digests of all that a configuration names to learn from: by key, of files and folders.

    Checkpoints and run folders, files of ONNX, folders of stored predictions and of networks of
    other libraries. Networks that ship with segkd or come from a hub are left out, and so is what
    is not there (any more): a finished run does not need its teacher.
    """
    found = {}
    for key, value in _named(config).items():
        try:
            found[key] = _digest_of(key, value)
        except (SegKDError, OSError):
            continue
    return found


def require_same(config: RunConfig, stored: Sources, folder: Path) -> None:
    """Refuses to go on with a run whose teachers or first weights have become others.

    Args:
        config: the run.
        stored: what ``sources`` was when it began; empty for runs of earlier versions.
        folder: of the run.

    Raises:
        ConfigError: names the key, and says what to do.
    """
    for key, digest in sources(config).items():
        if stored.get(key, digest) != digest:
            raise ConfigError(
                f"{folder}: {key}: {_named(config)[key]} is not what it was when this run learned "
                f"from it. Put that back, delete {folder} to train this run anew, or choose "
                "another folder: out=runs/NAME"
            )


def _named(config: RunConfig) -> dict[str, str]:
    """Files and folders by the key that names them; they need not exist."""
    found = {".".join(path): value for path, value in checkpoints(config)}
    for name, teacher in config.teachers.items():
        for library in ("hf", "timm"):
            found[f"teachers.{name}.{library}"] = getattr(teacher, library)
        for kind in ("onnx", "predictions"):
            box = teacher.black_box and getattr(teacher.black_box, kind)
            found[f"teachers.{name}.black_box.{kind}"] = str(box or "")
    return {key: value for key, value in found.items() if value}


def _digest_of(key: str, value: str) -> str:
    """Raises SegKDError or OSError for what is not here, or cannot change."""
    kind = key.rpartition(".")[2]
    if kind not in ("hf", "timm", "onnx", "predictions"):
        if value.startswith("pretrained:"):
            raise CheckpointError(f"{value} ships with segkd")
        return _digest(*_state(resolve(value)))
    path = Path(value).expanduser()
    if kind == "onnx":
        beside = [path.with_name(path.name + ending) for ending in _EXTERNAL]
        files = [path, *(file for file in beside if file.is_file())]
        return _joined(_digest(*_state(file)) for file in files)
    folder = path.resolve(strict=True)
    below = sorted(file for file in folder.rglob("*") if file.is_file())
    if not below:
        raise NotADirectoryError(path)
    if kind == "predictions":  # of each image one: too many to read
        return _joined(f"{file.relative_to(folder)} {file.stat().st_size}" for file in below)
    return _joined(_digest(*_state(file)) for file in below)


def _state(file: Path) -> tuple[Path, int, int]:
    state = file.stat()
    return file, state.st_mtime_ns, state.st_size


def _joined(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@lru_cache
def _digest(file: Path, changed: int, size: int) -> str:
    """Of the file's bytes; ``changed`` and ``size`` tell one state of the file from another."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
