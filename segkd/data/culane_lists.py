"""CULane's list files: an image a line, with its mask and a flag per slot in those of ``_gt``."""

import re
from dataclasses import dataclass
from pathlib import Path

from segkd.data.lane_lists import STANDARD
from segkd.errors import DataError
from segkd.texts import read_lines, require_below

MOST_LANES = 12
_COLUMNS = re.compile(  # names may contain blanks
    r"(?P<image>\S.*?\.(?:jpe?g|png))(?:\s+(?P<mask>\S.*?\.png)(?P<flags>(?:\s+\S+)*))?\s*", re.I
)


@dataclass(frozen=True)
class Listed:
    """A line of a list file.

    Attributes:
        image: path below the root of the set.
        mask: path below the root, or None.
        flags: existence by slot, or None.
    """

    image: str
    mask: str | None
    flags: tuple[int, ...] | None


def read_listed(path: Path) -> list[Listed]:
    """Lines of a list file.

    Raises:
        DataError: with file and line, for a malformed line, or one with another number of flags
            than the first; or no line.
    """
    listed = []
    for number, line in read_lines(path):
        where = f"{path}, line {number}"
        listed.append(_listed(where, line))
        first, flags = listed[0].flags, listed[-1].flags
        if flags is not None and first is not None and len(flags) != len(first):
            raise DataError(
                f"{where}: {line.strip()[:90]!r} is not valid; expected {len(first)} flags of "
                f"lanes as in the first line, got {len(flags)}"
            )
    if not listed:
        raise DataError(f"{path}: has no entry; expected one image like /folder/00000.jpg per line")
    return listed


def _listed(where: str, line: str) -> Listed:
    match = _COLUMNS.fullmatch(line.strip())
    words = [] if match is None else (match["flags"] or "").split()
    odd = any(word not in ("0", "1") for word in words)
    if match is None or odd or len(words) > MOST_LANES:
        raise DataError(
            f"{where}: {line.strip()[:90]!r} is not valid; expected `/folder/00000.jpg`, or `image "
            f"mask 0 1 1 0` with a flag of 0 or 1 per slot, up to {MOST_LANES}"
        )
    image, mask = match["image"], match["mask"]
    for entry in (image, mask or ""):
        require_below(entry, where)
    flags = tuple(map(int, words)) or None
    return Listed(image.lstrip("/"), None if mask is None else mask.lstrip("/"), flags)


def splits_of(folder: Path) -> dict[str, tuple[str, Listed]]:
    """Split and line of each image in a folder of lists.

    Of several lists with an image those of ``train``, ``val`` and ``test`` come first, as others
    are parts or sums of them, and of two those with flags.

    Raises:
        DataError: see ``read_listed``.
    """
    found: dict[str, tuple[str, Listed]] = {}
    for path in sorted(folder.glob("*.txt"), key=_rank):
        for one in read_listed(path):
            found.setdefault(one.image, (_split(path), one))
    return found


def _rank(path: Path) -> tuple[bool, bool, str]:
    return _split(path) not in STANDARD, not path.stem.endswith("_gt"), path.name


def _split(path: Path) -> str:
    return path.stem.removesuffix("_gt")


def number_of_flags(folder: Path, otherwise: int) -> int:
    """Number of flags in a folder of lists, by the first line of each; ``otherwise`` without."""
    for path in sorted(folder.glob("*_gt.txt")):
        for number, line in read_lines(path)[:1]:
            flags = _listed(f"{path}, line {number}", line).flags
            otherwise = otherwise if flags is None else len(flags)
    return otherwise
