"""Decoded images on disk, mapped into memory: packed blocks of rows (``.rows``), or ``.npy``.

All processes of a machine read the same pages. With ``lz4`` (extra ``fast``) files are packed, see
``data.packing``; without it they are plain arrays, as those of earlier versions, which are read as
they are until they are made anew.
"""

import functools
import json
import mmap
from pathlib import Path
from typing import IO

import numpy as np

from segkd.data.packing import Buffer, Layout, Packed, pack, packs, unpack
from segkd.data.reading import SampleError
from segkd.files import write_atomic

_MARK = b"segkd rows 1\n"  # another layout gets another number
_REPAIR = "Run `segkd data make cityscapes --cache`, or set data.decoded=false."


def is_current(path: Path) -> bool:
    """Whether the array is here in the format that ``write_pixels`` would write now.

    Args:
        path: without suffix.
    """
    if not packs():
        return _plain(path).is_file()
    try:
        with open(_packed(path), "rb") as file:
            return file.read(len(_MARK)) == _MARK
    except OSError:
        return False


def write_pixels(path: Path, array: np.ndarray) -> int:
    """Writes an array (H, W, …), removes one in the other format, and returns the bytes.

    Args:
        path: without suffix.
        array: of bytes or whole numbers.
    """
    if packs():
        layout, parts = pack(array)
        head = json.dumps(vars(layout)).encode()
        here, other = _packed(path), _plain(path)
        parts = [_MARK, len(head).to_bytes(8, "little"), head, *parts]
        write_atomic(here, functools.partial(_write, parts=parts))
    else:
        here, other = _plain(path), _packed(path)
        write_atomic(here, functools.partial(np.save, arr=array))
    other.unlink(missing_ok=True)
    return here.stat().st_size


def read_pixels(path: Path) -> np.ndarray | Packed:
    """The array (H, W, …), mapped; packed ones are unpacked where they are looked at.

    Args:
        path: without suffix.

    Raises:
        SampleError: it is missing, damaged, of another version, or needs ``lz4``.
    """
    if packs() or not _plain(path).is_file():
        found = _read_packed(_packed(path))
        if found is not None:
            return found
    try:
        return np.load(_plain(path), mmap_mode="r")
    except (OSError, ValueError) as error:
        raise SampleError(_plain(path), f"no decoded image here ({error})", _REPAIR) from None


def _read_packed(path: Path) -> np.ndarray | Packed | None:
    """The array of a packed file; None if there is no such file."""
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
    return unpack(layout, data[stop:])


def _write(file: IO[bytes], parts: list[Buffer]) -> None:
    for part in parts:
        file.write(part)


def _packed(path: Path) -> Path:
    return path.with_name(f"{path.name}.rows")


def _plain(path: Path) -> Path:
    return path.with_name(f"{path.name}.npy")
