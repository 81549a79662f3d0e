"""Decoded images on disk, mapped into memory: packed blocks of rows (``.rows``), or ``.npy``.

All processes of a machine read the same pages. With ``lz4`` (extra ``fast``) files are packed, see
``data.packing``; without it they are plain arrays, as those of earlier versions, which are read as
they are until they are made anew.
"""

import functools
import json
import mmap
import os
from pathlib import Path
from typing import IO

import numpy as np

from segkd.data.packing import Buffer, Layout, Packed, pack, packs, unpack
from segkd.data.reading import DAMAGED_ARRAYS, SampleError
from segkd.files import write_atomic

_MARK = b"segkd rows 1\n"  # another layout gets another number
_REPAIR = "Run `segkd data make cityscapes --cache`, or set data.decoded=false."
_CLOCK = 2_000_000_000  # ns: what file systems may round the time of a file by
_SOURCE = b"segkd source "  # behind a plain array, before the bytes of the file it was made from
_DIGITS = 16


def is_current(path: Path, source: Path) -> bool:
    """Whether the array is here, whole, as ``write_pixels`` would write it now.

    Args:
        path: without suffix.
        source: the file that it was decoded from; another one there has another time.
    """
    own = _packed(path) if packs() else _plain(path)
    try:
        if abs(own.stat().st_mtime_ns - source.stat().st_mtime_ns) > _CLOCK:
            return False
        found = _read_packed(own) if packs() else _mapped(own)
        return found is not None and found[1] in (None, source.stat().st_size)
    except (OSError, SampleError):
        return False


def write_pixels(path: Path, array: np.ndarray, source: Path | None = None) -> int:
    """Writes an array (H, W, …), removes one in the other format, and returns the bytes.

    Args:
        path: without suffix.
        array: of bytes or whole numbers.
        source: the file that it was decoded from, whose time the new one gets, and of which it
            records the bytes: files of equal names in another root have other bytes.
    """
    of = None if source is None else source.stat().st_size
    if packs():
        layout, parts = pack(array)
        head = json.dumps({**vars(layout), "source": of}).encode()
        here, other = _packed(path), _plain(path)
        parts = [_MARK, len(head).to_bytes(8, "little"), head, *parts]
        write_atomic(here, functools.partial(_write, parts=parts))
    else:
        here, other = _plain(path), _packed(path)
        write_atomic(here, functools.partial(_save, array=array, of=of))
    other.unlink(missing_ok=True)
    if source is not None:
        found = source.stat()
        os.utime(here, ns=(found.st_atime_ns, found.st_mtime_ns))
    return here.stat().st_size


def read_pixels(path: Path, source: Path | None = None) -> np.ndarray | Packed:
    """The array (H, W, …), mapped; packed ones are unpacked where they are looked at.

    Args:
        path: without suffix.
        source: the file that it was decoded from; None: it is not asked whether that has changed.

    Raises:
        SampleError: it is missing, older than its source, made from another file, damaged, of
            another version, or needs ``lz4``.
    """
    if packs() or not _plain(path).is_file():
        found = _read_packed(_packed(path))
        if found is not None:
            _require_made_from(_packed(path), source, found[1])
            return found[0]
    plain, of = _mapped(_plain(path))
    _require_made_from(_plain(path), source, of)
    return plain


def _require_made_from(path: Path, source: Path | None, of: int | None) -> None:
    """Raises SampleError if a source that is still there was changed, or is another file.

    Args:
        path: the decoded file.
        source: the image or mask.
        of: bytes of the file that the decoded one was made from; None: it does not say so.
    """
    if source is None:
        return
    try:
        found = source.stat()
        changed = found.st_mtime_ns > path.stat().st_mtime_ns + _CLOCK
    except OSError:
        return
    if changed:
        raise SampleError(path, f"is older than {source}, from which it was decoded", _REPAIR)
    if of is not None and of != found.st_size:
        why = f"was decoded from another file than {source} (of {of} bytes, not {found.st_size})"
        raise SampleError(path, why, "Each root needs a folder of its own. " + _REPAIR)


def _mapped(path: Path) -> tuple[np.ndarray, int | None]:
    """The array of a plain file, and the bytes of its source. Raises SampleError."""
    try:
        found = np.load(path, mmap_mode="r")
        behind = path.stat().st_size - found.offset - found.nbytes
    except DAMAGED_ARRAYS as error:
        raise SampleError(path, f"no decoded image here ({error})", _REPAIR) from None
    if behind == 0:  # of an earlier version
        return found, None
    with open(path, "rb") as file:
        file.seek(-behind, os.SEEK_END)
        end = file.read(len(_SOURCE) + _DIGITS + 1)
    digits = end.removeprefix(_SOURCE)
    if len(digits) != _DIGITS or not digits.isdigit():
        raise SampleError(path, "is damaged: it has another length than it says", _REPAIR)
    return found, int(digits)


def _read_packed(path: Path) -> tuple[np.ndarray | Packed, int | None] | None:
    """The array of a packed file, and the bytes of its source; None if there is no such file."""
    try:
        with open(path, "rb") as file:
            # A third of the time of numpy.memmap.
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise SampleError(path, f"cannot be read ({error})", _REPAIR) from None
    if not packs():
        repair = "Type: pip install 'segkd[fast]'. Or set data.decoded=false."
        raise SampleError(path, "reading it needs lz4, which is not installed", repair)
    if bytes(data[: len(_MARK)]) != _MARK:
        raise SampleError(path, "was made by another version of segkd, or is damaged", _REPAIR)
    start = len(_MARK) + 8
    stop = start + int.from_bytes(data[start - 8 : start], "little")
    try:
        keys = json.loads(bytes(data[start:stop]))
        layout = Layout(tuple(keys["shape"]), keys["dtype"], tuple(keys["lengths"]), keys["rows"])
        whole = stop + layout.size == len(data)
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise SampleError(path, "is damaged: it has another length than it says", _REPAIR)
    return unpack(layout, data[stop:]), keys.get("source")


def _save(file: IO[bytes], array: np.ndarray, of: int | None) -> None:
    """Writes a plain array; what stands behind one is not looked at by numpy."""
    np.save(file, array)
    if of is not None:
        file.write(_SOURCE + str(of).zfill(_DIGITS).encode())


def _write(file: IO[bytes], parts: list[Buffer]) -> None:
    for part in parts:
        file.write(part)


def _packed(path: Path) -> Path:
    return path.with_name(f"{path.name}.rows")


def _plain(path: Path) -> Path:
    return path.with_name(f"{path.name}.npy")
