"""Files of a folder: links are followed, files of operating systems and tools are ignored."""

import functools
import logging
import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from segkd.errors import DataError

_log = logging.getLogger(__name__)

# Besides hidden ones (.ipynb_checkpoints, .AppleDouble, ._x of macOS, .nfs0001, .Trash-1000):
_LITTER = re.compile(
    r"__MACOSX|@eaDir|@Recycle|@Recently-Snapshot|#recycle|#snapshot|\$RECYCLE\.BIN|lost\+found"
    r"|System Volume Information|__pycache__|Thumbs\.db|ehthumbs\.db|desktop\.ini|~\$.*|.*~",
    re.IGNORECASE,
)


def is_litter(name: str) -> bool:
    """Whether a file or folder was created by an operating system, a notebook or a storage."""
    return name.startswith(".") or _LITTER.fullmatch(name) is not None


def files_below(folder: Path, endings: Iterable[str]) -> list[Path]:
    """All files below ``folder`` with one of the endings (in any case), sorted by path.

    Linked folders are followed, except into themselves. Broken links are included, so that reading
    them reports their names.

    Raises:
        DataError: no permission to read a folder.
    """
    wanted = tuple(ending.lower() for ending in endings)
    return sorted(path for path in _walk(folder, ()) if path.name.lower().endswith(wanted))


def by_stem(paths: Iterable[Path], stem: Callable[[Path], str]) -> dict[str, Path]:
    """Images by the name that they share with their masks.

    Args:
        paths: of the images.
        stem: the name of an image.

    Raises:
        DataError: two images of one name, e.g. ``a.jpg`` and ``a.png``, to which one mask belongs.
    """
    found: dict[str, Path] = {}
    for path in dict.fromkeys(paths):
        first = found.setdefault(same_name(stem(path)), path)
        if first != path:
            raise DataError(
                f"{first} and {path} are two images of one name, to which one mask belongs. Remove "
                "or rename one of them; a data.spec can also declare `image_ending: "
                f"{path.suffix}`, or list images with their endings"
            )
    return found


def neighbour(path: Path, known: Collection[Path] = ()) -> str:
    """The name of a file next to a missing one that differs only by case or ending, or ''.

    Args:
        path: of the missing file.
        known: files whose meaning is known, e.g. images beside their masks.
    """
    try:
        names = [one.name for one in os.scandir(path.parent) if not is_litter(one.name)]
    except OSError:
        return ""
    names = [name for name in names if path.parent / name not in known]
    folded = {name.casefold(): name for name in names}
    if path.name.casefold() in folded:
        return folded[path.name.casefold()]
    return next((name for name in sorted(names) if Path(name).stem == path.stem), "")


def same_name(text: str) -> str:
    """A name in Unicode form NFC, for comparisons: macOS stores accents decomposed."""
    return unicodedata.normalize("NFC", text)


def existing_form(path: Path) -> Path:
    """``path``, or if it is missing, a file whose name is the same text in another Unicode form."""
    if path.name.isascii() and str(path).isascii():
        return path
    if path.exists():
        return path
    found = Path(path.anchor or ".")
    for part in path.parts[1:] if path.anchor else path.parts:
        step = found / part
        if not step.exists() and not part.isascii() and found.is_dir():
            wanted = same_name(part)
            step = next((one for one in found.iterdir() if same_name(one.name) == wanted), step)
        found = step
    return found if found.exists() else path


@functools.cache  # a folder is walked several times: for images, masks, and each split
def _tell_dead_link(path: Path, target: str) -> None:
    _log.warning("%s: is a link to %s, which does not exist", path, target)


def _walk(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    try:
        facts = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        return
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be read: {error.strerror}. Change its permissions, or move it away"
        ) from None
    own = (facts.st_dev, facts.st_ino)
    if own in above:
        return  # a link to a parent folder
    for entry in entries:
        if is_litter(entry.name):
            continue
        path = folder / entry.name
        if entry.is_dir():
            yield from _walk(path, (*above, own))
            continue
        if entry.is_symlink() and not entry.is_file():
            _tell_dead_link(path, os.readlink(path))
        yield path
