"""Atomic writing of files."""

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

_NO_FOLDER = "this is a file, where a folder is needed. Remove it, or give another folder"


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file completely or not at all: an interrupted write keeps the old file.

    Args:
        path: of the file; its folder is created.
        write: writes the content.

    Raises:
        OSError: no space or no permission; the partial file is removed.
    """
    make_folder(path.parent)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(scratch, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, where they are not there yet.

    Raises:
        OSError: no permission, or one of them is a file; which one, and what to do.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:  # the system's texts name no cause
        file = _file_above(folder) or folder
        raise NotADirectoryError(errno.ENOTDIR, _NO_FOLDER, str(file)) from error


def require_place(folder: Path) -> None:
    """Refuses a folder that cannot be made, before the work whose results it would get.

    Raises:
        OSError: it or one above it is a file; which one, and what to do.
    """
    if file := _file_above(folder):
        raise NotADirectoryError(errno.ENOTDIR, _NO_FOLDER, str(file))


def _file_above(folder: Path) -> Path | None:
    """The first of a folder and those above it that is a file."""
    return next((one for one in (folder, *folder.parents) if one.is_file()), None)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically, as UTF-8. Raises like ``write_atomic``."""
    write_atomic(path, lambda file: file.write(text.encode()))
