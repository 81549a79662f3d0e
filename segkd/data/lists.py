"""List files: text files that select images of a set by paths below its root."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from segkd.config_files import config_roots
from segkd.data.files import same_name
from segkd.data.paired import IMAGE_ENDINGS
from segkd.data.reading import listed
from segkd.errors import DataError
from segkd.texts import read_lines

ENDING = ".txt"  # of a split that is a list file
_ENDED = re.compile(rf".+?(?:{'|'.join(map(re.escape, IMAGE_ENDINGS))})(?=\s)", re.IGNORECASE)
Found = TypeVar("Found")


def find_list(path: str | Path, root: Path, key: str) -> Path:
    """Finds a list file: as given, below the root of the set, or below a folder of configs.

    Args:
        path: as given in the config.
        root: of the set.
        key: of the config, for messages.

    Raises:
        DataError: there is no such file.
    """
    given = Path(path).expanduser()
    inside = Path(*given.parts[1:]) if given.parts[:1] == ("configs",) else given
    in_configs = [] if given.is_absolute() else [folder / inside for folder in config_roots()]
    for candidate in (given, root / given, *in_configs):
        if candidate.is_file():
            return candidate
    raise DataError(
        f"{key}: there is no list file {given}, neither here nor in {root}. It has one image per "
        "line, as a path below the root"
    )


def image_lines(path: Path) -> list[str]:
    """The lines of a list file that are not blank. Raises DataError if there are none."""
    lines = [line for _, line in read_lines(path)]
    if not lines:
        raise DataError(f"{path}: the list is empty: write one image per line")
    return lines


def readings(line: str) -> list[str]:
    """What may be the image of a line, likeliest first: names may have blanks, lines columns.

    All of the line, all up to the first ending of an image, and all up to the first blank.
    """
    ended = _ENDED.match(line)
    return list(dict.fromkeys([line, *([ended[0]] if ended else []), line.split()[0]]))


def one_column(line: str) -> list[str]:
    """The ``readings`` without blanks in folders, with which they may be two columns."""
    return [one for one in readings(line) if len(one.rpartition("/")[0].split()) < 2]


def likeliest(line: str, exists: Callable[[str], bool]) -> str:
    """The image of a line: of its readings as ``one_column`` the first that exists.

    Args:
        line: of a list file.
        exists: whether there is an image of this name; is asked for lines with blanks alone.

    Returns:
        A reading; if none exists, the one that the line looks like.
    """
    found = one_column(line)
    if len(found) == 1:
        return found[0]
    looks_like = next((one for one in found if one.lower().endswith(IMAGE_ENDINGS)), found[-1])
    return next((one for one in found if exists(one)), looks_like)


def require_distinct(path: Path, names: Iterable[str], images: Iterable[Path]) -> None:
    """Refuses lines without ending that several images fit.

    Args:
        path: the list file, for messages.
        names: its lines.
        images: all images, below the root.

    Raises:
        DataError: a line is the name of ``a.jpg`` and ``a.png``.
    """
    by_stem: dict[str, list[str]] = defaultdict(list)
    for image in images:
        by_stem[same_name(image.with_suffix("").as_posix())].append(image.as_posix())
    for name in names:
        own = by_stem.get(same_name(name), [])
        if len(own) > 1:
            raise DataError(f"{path}: '{name}' may be {listed(own, 3)}. Write it with its ending")


def choose(
    path: Path, names: Sequence[str], found: Mapping[str, Found], root: Path | str
) -> list[Found]:
    """The items that a list file names, in its order.

    Args:
        path: the list file, for messages.
        names: its lines.
        found: existing items by name; an item may have several names.
        root: of the names, for messages.

    Raises:
        DataError: a name without item, or a duplicate.
    """
    found = {same_name(name): one for name, one in found.items()}
    names = [same_name(name) for name in names]
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(f"{path}: no image for {listed(missing, 3)}. Lines are paths below {root}")
    twice = [name for name, number in Counter(names).items() if number > 1]
    if twice:
        raise DataError(f"{path}: duplicate lines {listed(twice, 3)}. Keep one of each")
    return [found[name] for name in names]
