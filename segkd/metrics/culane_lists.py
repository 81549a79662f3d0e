"""CULane's list files: which images there are, and of which category."""

import re
from pathlib import Path

from segkd.errors import DataError
from segkd.texts import read_lines, require_below

_TRAIN_COLUMNS = re.compile(r"\s+/\S.*\.png(\s+[01])*$")  # of train_gt.txt: mask and existence
_NUMBERED = re.compile(r"^test\d+_")


def lines_file(entry: str) -> str:
    """The lane file of an entry: what follows the last dot becomes ``.lines.txt``."""
    stem, dot, _ = entry.rpartition(".")
    return (stem if dot else entry).lstrip("/") + ".lines.txt"


def read_list(path: Path) -> list[str]:
    """Entries of a list file: one image per line; further columns of train_gt.txt are left out.

    Raises:
        DataError: the file is missing, has no entry, or one that leads out of the set.
    """
    entries = [
        require_below(_TRAIN_COLUMNS.sub("", line), f"{path}, line {number}")
        for number, line in read_lines(path)
    ]
    if not entries:
        raise DataError(f"{path}: has no entry; expected one image like /folder/00000.jpg per line")
    return entries


def read_categories(folder: Path) -> dict[str, list[str]]:
    """Entries of each category from CULane's ``list/test_split``: test0_normal.txt -> normal.

    Raises:
        DataError: the folder has no ``.txt`` file.
    """
    files = sorted(file for file in folder.glob("*.txt") if not file.name.startswith("."))
    if not files:
        raise DataError(
            f"{folder}: no .txt files; expected one list per category, like test0_normal.txt in "
            "CULane's list/test_split"
        )
    return {_NUMBERED.sub("", file.stem): read_list(file) for file in files}
