"""The networks that a run learned from, so that one that changes later is noticed."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from segkd.config.recipe import checkpoints
from segkd.config.schema import RunConfig
from segkd.errors import CheckpointError, ConfigError, SegKDError
from segkd.models.weights import resolve

Sources = Mapping[str, str]  # digest of a file by the key that names it
_LIBRARIES = ("hf", "timm")
_EXTERNAL = (".data", "_data")  # endings of the weights beside an ONNX file


def sources(config: RunConfig) -> dict[str, str]:
    """Digests of all that a configuration names to learn from: by key, of files and folders.

    Checkpoints and run folders, files of ONNX, folders of networks of other libraries. Networks
    that ship with segkd or come from a hub are left out, stored predictions, to which more may be
    added, and what is not there (any more): a finished run does not need its teacher.
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
        if stored.get(key, digest) not in (digest, _former(config, key)):
            raise ConfigError(
                f"{folder}: {key}: {_named(config)[key]} is not what it was when this run learned "
                f"from it. Put that back, delete {folder} to train this run anew, or choose "
                "another folder: out=runs/NAME"
            )


def _former(config: RunConfig, key: str) -> str | None:
    """What the digest of an unchanged source was when it was of another file of the same run."""
    if key != "init_from" or config.init_from is None:
        return None
    try:
        return _digest_of_file(resolve(config.init_from))
    except (SegKDError, OSError):
        return None


def _named(config: RunConfig) -> dict[str, str]:
    """Files and folders by the key that names them; they need not exist."""
    found = {".".join(path): value for path, value in checkpoints(config)}
    for name, teacher in config.teachers.items():
        for library in _LIBRARIES:
            found[f"teachers.{name}.{library}"] = getattr(teacher, library)
        box = teacher.black_box and teacher.black_box.onnx
        found[f"teachers.{name}.black_box.onnx"] = str(box or "")
    return {key: value for key, value in found.items() if value}


def _digest_of(key: str, value: str) -> str:
    """Raises SegKDError or OSError for what is not here, or cannot change."""
    kind, path = key.rpartition(".")[2], Path(value).expanduser()
    if kind == "onnx":
        beside = (path.with_name(path.name + ending) for ending in _EXTERNAL)
        return _joined([path, *filter(Path.is_file, beside)])
    if kind in _LIBRARIES:
        return _joined(folder_files(value))
    if value.startswith("pretrained:"):
        raise CheckpointError(f"{value} ships with segkd")
    if kind == "init_from":
        return _digest_of_file(path / "checkpoints" / "last.pt")
    return _digest_of_file(resolve(value))


def folder_files(name: str) -> list[Path]:
    """The files of a network that another library reads from a folder, sorted.

    Args:
        name: the folder, or a name for a hub.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    folder = Path(name).expanduser().resolve(strict=True)
    return sorted(filter(Path.is_file, folder.rglob("*")))


def _joined(files: Sequence[Path]) -> str:
    if not files:
        raise FileNotFoundError
    digests = "\n".join(map(_digest_of_file, files))
    return hashlib.sha256(digests.encode()).hexdigest()[:16]


def _digest_of_file(file: Path) -> str:
    state = file.stat()
    return _digest(file, state.st_mtime_ns, state.st_size)


@lru_cache
def _digest(file: Path, changed: int, size: int) -> str:
    """Of the file's bytes; ``changed`` and ``size`` tell one state of the file from another."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
