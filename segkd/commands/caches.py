"""`segkd cache`: lists or deletes stored outputs of teachers."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segkd.commands.display import say
from segkd.data.output_files import OutputFolder
from segkd.engine.teacher_cache import RECORD, byte_text, default_folder
from segkd.errors import ConfigError, did_you_mean
from segkd.evaluation.table import TextTable
from segkd.texts import parse_json, read_text

_HELP = (
    "Runs with `teachers.NAME.cache` write into the key `dir`, else $SEGKD_TEACHER_CACHE, else "
    "runs/teacher_cache; look into another one by `segkd cache list FOLDER`"
)


def list_caches(folder: Path | None) -> None:
    """Prints a table of the caches in a folder. Raises ConfigError if the folder is not one."""
    rows = []
    root, caches = _caches(folder)
    if not caches:
        say(f"{_where(root)}: no outputs of teachers are stored here. {_HELP}")
        return
    for path in caches:
        count, size = OutputFolder(path).size()
        facts = parse_json(read_text(path / RECORD), str(path / RECORD))
        images = _at(facts, "data", "images")
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(_last_used(path)))
        crop = _at(facts, "views", "crop")
        views = f"views {'x'.join(map(str, crop))}" if crop else "views"
        seen = views if _at(facts, "kind") == "views" else "whole images"
        layers = str(_at(facts, "teacher", "weights"))[:8]
        rows.append([path.name, seen, str(images), layers, str(count), byte_text(size), used])
    titles = ["name", "of", "images", "weights", "outputs", "size", "last used"]
    say(TextTable(titles, rows, words=True).text().rstrip())


def clear_caches(names: Sequence[str], everything: bool, folder: Path | None) -> None:
    """Deletes caches by name, or all of a folder. Raises ConfigError for unknown names."""
    root, caches = _caches(folder)
    known = {path.name: path for path in caches}
    if everything == bool(names):
        raise ConfigError("give either names, as `segkd cache list` shows them, or --all")
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known) if known else " It holds none."
            raise ConfigError(f"{_where(root)}: there is no cache '{name}'.{hint}")
    if not known:
        say(f"{_where(root)}: no outputs of teachers are stored here, so nothing is deleted")
    for name in known if everything else dict.fromkeys(names):
        _, size = OutputFolder(known[name]).size()
        shutil.rmtree(known[name])
        say(f"deleted {known[name]}: {byte_text(size)}")


def _caches(folder: Path | None) -> tuple[Path, list[Path]]:
    """The folder that was looked at, and the folders with a record in it, the latest first.

    Raises:
        ConfigError: a folder that the user named does not exist, or is a file.
    """
    root = (folder or default_folder()).expanduser()
    if root.exists() and not root.is_dir():
        raise ConfigError(f"{root} is a file. Give the folder of the caches: {_HELP}")
    if folder is not None and not root.is_dir():
        raise ConfigError(f"there is no folder {root}. {_HELP}")
    found = [record.parent for record in root.glob(f"*/{RECORD}")]
    return root, sorted(found, key=_last_used, reverse=True)


def _where(root: Path) -> str:
    return f"{root}{'' if root.is_dir() else ' (does not exist yet)'}"


def _last_used(path: Path) -> float:
    return (path / RECORD).stat().st_mtime


def _at(facts: Any, *keys: str) -> Any:
    for key in keys:
        facts = facts.get(key) if isinstance(facts, dict) else None
    return facts
