"""The checkpoints that a run was built from, so that one that changes later is noticed."""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from segkd.config.recipe import checkpoints
from segkd.config.schema import RunConfig
from segkd.errors import ConfigError, SegKDError
from segkd.models.weights import resolve

Sources = Mapping[str, str]  # digest of a file by the key that names it


def sources(config: RunConfig) -> dict[str, str]:
    """The digests of all checkpoint files and run folders of a configuration.

    Networks that ship with segkd are left out, and files that are not there (any more): a finished
    run does not need its teacher.
    """
    found = {}
    for path, value in checkpoints(config):
        if value.startswith("pretrained:"):
            continue
        try:
            file = resolve(value)
            state = file.stat()
        except (SegKDError, OSError):
            continue
        found[".".join(path)] = _digest(file, state.st_mtime_ns, state.st_size)
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
    values = {".".join(path): value for path, value in checkpoints(config)}
    for key, digest in sources(config).items():
        if stored.get(key, digest) != digest:
            raise ConfigError(
                f"{folder}: {key}: {values[key]} is not what it was when this run learned from it. "
                f"Put that file back, delete {folder} to train this run anew, or choose another "
                "folder: out=runs/NAME"
            )


@lru_cache
def _digest(file: Path, changed: int, size: int) -> str:
    """Of the file's bytes; ``changed`` and ``size`` tell one state of the file from another."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
