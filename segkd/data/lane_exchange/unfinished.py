"""A conversion that was stopped says so in its folder, and the same one goes on there.

Lists and annotations come after the images, so that without this a folder of images alone would be
left, which looks like any other folder.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segkd.errors import DataError
from segkd.files import write_text
from segkd.texts import parse_json, read_text

if TYPE_CHECKING:
    from segkd.data.lane_exchange.convert import Conversion, Format

# Without an ending, since JSON files and texts in the folder are annotations and lists.
MARK = "unfinished_conversion"


def require_finished(source: Path) -> None:
    """Raises DataError for a source that is itself half of a conversion."""
    if (source / MARK).is_file():
        raise DataError(
            f"{source}: is a conversion that was stopped, so parts are missing "
            f"({_command(_stored(source))}). Repeat it, which goes on, and then convert the folder"
        )


def require_free(out: Path, source: Path, to: "Format", kind: "Format", how: "Conversion") -> None:
    """Checks that a conversion may write into a folder.

    Args:
        out: the folder; it need not exist.
        source, to, kind, how: of the conversion, see ``convert``.

    Raises:
        DataError: it holds files of something else, or another conversion that was stopped.
    """
    if not out.exists() or (out.is_dir() and next(out.iterdir(), None) is None):
        return
    if not (out / MARK).is_file():
        raise DataError(f"{out}: exists already. Give a new or an empty folder")
    stored = _stored(out)
    if stored != _facts(source, to, kind, how):
        raise DataError(
            f"{out}: holds another conversion, which was stopped ({_command(stored)}; see "
            f"{out / MARK}). Repeat that one, which goes on, remove the folder, or give another one"
        )


def begin(out: Path, source: Path, to: "Format", kind: "Format", how: "Conversion") -> None:
    """Marks a folder as unfinished. Raises OSError if it cannot be written."""
    write_text(out / MARK, json.dumps(_facts(source, to, kind, how), indent=2) + "\n")


def finish(out: Path) -> None:
    """Takes the mark away, after the last file."""
    (out / MARK).unlink()


def _facts(source: Path, to: "Format", kind: "Format", how: "Conversion") -> dict[str, Any]:
    facts = {"source": str(source.resolve()), "from": kind, "to": to, **asdict(how)}
    return dict(json.loads(json.dumps(facts)))  # as they are read back


def _stored(folder: Path) -> dict[str, Any]:
    found = parse_json(read_text(folder / MARK), str(folder / MARK))
    return dict(found) if isinstance(found, dict) else {}


def _command(facts: dict[str, Any]) -> str:
    return f"of {facts.get('source')} to {facts.get('to')}"
