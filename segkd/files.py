"""Atomic writing of files."""

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO


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
        file = next((one for one in (folder, *folder.parents) if one.is_file()), folder)
        what = "this is a file, where a folder is needed. Remove it, or give another folder"
        raise NotADirectoryError(errno.ENOTDIR, what, str(file)) from error


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically, as UTF-8. Raises like ``write_atomic``."""
    write_atomic(path, lambda file: file.write(text.encode()))
