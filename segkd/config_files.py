"""Finds config files: in the folder ``configs`` here, next to the package, or inside it."""

import difflib
import importlib.resources
from collections.abc import Iterable
from pathlib import Path

import segkd
from segkd.errors import ConfigError

SUFFIX = ".yaml"
_SHOWN = 5  # configs in a message
_FEW = 3  # of them if none is close
_CLOSE = 0.6  # share of equal characters
_LONGEST_WORD = 100  # the time of a comparison is the product of the lengths


def config_roots() -> list[Path]:
    """Folders with configs, in the order in which they are searched."""
    package = Path(segkd.__file__).parent
    beside = package.parent / "configs"
    is_clone = (package.parent / "pyproject.toml").is_file()
    installed = Path(str(importlib.resources.files("segkd"))) / "_configs"
    candidates = [Path("configs"), *([beside] if is_clone else []), installed]
    roots: list[Path] = []
    for root in (candidate.resolve() for candidate in candidates):
        if root.is_dir() and root not in roots:
            roots.append(root)
    return roots


def known_configs() -> dict[str, Path]:
    """Every config by name, e.g. ``camvid/kd_cwd``, without folders that begin with ``_``."""
    known: dict[str, Path] = {}
    for root in config_roots():
        for path in sorted(root.rglob(f"*{SUFFIX}")):
            relative = path.relative_to(root)
            if not any(part.startswith("_") for part in relative.parts):
                known.setdefault(relative.with_suffix("").as_posix(), path)
    return known


def find_config(name: str | Path) -> Path:
    """The file of a config: a path, or a name below one of the roots.

    Raises:
        ConfigError: it does not exist; suggests the closest known config.
    """
    if not str(name).strip():
        raise ConfigError("the name of the config is empty. See: segkd list configs")
    given = Path(name)
    inside = Path(*given.parts[1:]) if given.parts[:1] == ("configs",) else given
    candidates = [given, *(root / inside for root in config_roots() if not given.is_absolute())]
    for candidate in candidates:
        if not candidate.name:  # the working folder, or the root: with_name() would refuse them
            continue
        for path in (candidate, candidate.with_name(candidate.name + SUFFIX)):
            if path.is_file():
                return path.resolve()
    known = known_configs()
    if given.is_dir():
        raise ConfigError(_about_folder(name, known))
    wanted = inside.with_suffix("").as_posix() if inside.name else ""
    near = _nearest(wanted, known)
    hint = f" The nearest names: {', '.join(near)}." if near else ""
    if len(near) == 1:
        hint = f" Did you mean '{near[0]}'?"
    raise ConfigError(f"there is no config '{name}'.{hint} See: segkd list configs")


def _nearest(wanted: str, known: Iterable[str]) -> list[str]:
    """Names similar to the wanted one, the closest first: by the last part, or by characters."""
    wanted, known = wanted[:_LONGEST_WORD].lower(), sorted(known)
    last = wanted.rpartition("/")[2]
    same = [key for key in known if key.rpartition("/")[2].lower() == last]
    if same:
        return same[:_SHOWN]

    def similarity(key: str) -> float:
        whole = difflib.SequenceMatcher(None, wanted, key).ratio()
        return max(whole, difflib.SequenceMatcher(None, last, key.rpartition("/")[2]).ratio())

    ranked = sorted(known, key=similarity, reverse=True)
    close = [key for key in ranked if similarity(key) >= _CLOSE]
    return (close or ranked)[: _SHOWN if close else _FEW]


def _about_folder(name: str | Path, known: dict[str, Path]) -> str:
    folder = Path(name).resolve()
    below = sorted(key for key, path in known.items() if path.is_relative_to(folder))
    own = sorted(path.name for path in folder.glob(f"*{SUFFIX}"))
    found = [str(Path(name) / file) for file in own] or below
    shown = f" It contains {', '.join(found[:_SHOWN])}" if found else " It contains no configs"
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"'{name}' is a folder, expected a config.{shown}{more}. See: segkd list configs"


def default_out(path: Path) -> Path:
    """``runs/<path of the config below its root, without suffix>``."""
    for root in config_roots():
        if path.is_relative_to(root):
            return Path("runs") / path.relative_to(root).with_suffix("")
    return Path("runs") / path.stem
