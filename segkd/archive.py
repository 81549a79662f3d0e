"""Reads files that torch.save wrote, without executing anything in them."""

import argparse
import pathlib
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segkd.errors import CheckpointError

_LOOK = 512  # bytes that identify the kind of a file
_NOT_TORCH = "torch.save did not write it"
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_WHAT = (  # first bytes of files without tensors, what they are, what to type
    (
        rb"version https://git-lfs",
        "is a pointer of Git LFS, not the file itself. Fetch that: git lfs pull",
    ),
    (
        rb"(\.\./)*\.?/?(git/)?annex/objects/",
        "is a pointer of git-annex, not the file itself. Fetch that: git annex get FILE",
    ),
    (
        rb"\s*<(!doctype|html|head|\?xml)",
        "is a web page: the address asks to log in or to confirm the download first. Download the "
        "file itself, e.g. with a browser",
    ),
    (
        rb"\s*[{\[]\s*[\"\]}{]",
        "is JSON text without tensors. Give the file of weights instead",
    ),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|Rar!|7z\xbc\xaf", "is a compressed archive. Unpack it first"),
    (rb"\x89HDF", "is an HDF5 file, of Keras or MATLAB. Give weights that torch.save wrote"),
)


def read_archive(path: Path) -> Any:
    """The content of a file that ``torch.save`` wrote, on the CPU.

    Reads plain data and tensors, and what many training scripts store with them: numbers of
    NumPy, paths, a Namespace of arguments. Other classes are refused, and nothing is executed.

    Raises:
        CheckpointError: the file is missing, damaged (its checksums are verified), another kind of
            file, or contains other pickled objects; says what it is and what to type.
    """
    refuse_other_kinds(path)
    _check_sums(path)
    try:
        with torch.serialization.safe_globals(_harmless()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about protocols of pickle
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not _is_pickled(path):
            raise CheckpointError(f"{path} cannot be read as a checkpoint: {_NOT_TORCH}") from error
        raise CheckpointError(_refused(path, str(error))) from error
    except Exception as error:  # damaged pickles raise exceptions of any type
        reason = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        repair = "It may be damaged: fetch it again" if _is_pickled(path) else _NOT_TORCH
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint ({reason}). {repair}"
        ) from error


def _is_pickled(path: Path) -> bool:
    """Whether a file begins like those of torch.save: a zip archive, or a pickle."""
    with open(path, "rb") as file:
        return file.read(1) in (b"P", b"\x80")


def refuse_other_kinds(path: Path) -> None:
    """Recognises files of other kinds by their first bytes.

    Raises:
        CheckpointError: the file is missing, empty, or of another kind; says what it is.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(_LOOK)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if not head:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: it is empty. Fetch it again")
    for pattern, what in _WHAT:
        if re.match(pattern, head, re.IGNORECASE):
            raise CheckpointError(f"{path} {what.replace('FILE', path.name)}")


def _check_sums(path: Path) -> None:
    """Verifies the checksums, which torch writes but does not compare when reading."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except Exception as error:  # a damaged table raises exceptions of any type
        broken = f"its table ({error})"
    if broken is not None:
        raise CheckpointError(
            f"{path} is damaged and cannot be read as a checkpoint: the checksum of {broken} is "
            "wrong. Take another copy, or an earlier checkpoint"
        )


def _harmless() -> list[Any]:
    """Classes to allow, for ``torch.serialization.safe_globals``."""
    multiarray = getattr(np, "_core", None) or np.core
    scalar = multiarray.multiarray.scalar
    scalars = [np.dtype, scalar, (scalar, "numpy.core.multiarray.scalar")]
    kinds = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?")]
    windows = pathlib.PureWindowsPath
    paths = [pathlib.PosixPath, pathlib.PurePosixPath, windows, (windows, "pathlib.WindowsPath")]
    return [*scalars, *kinds, *paths, argparse.Namespace]


def _refused(path: Path, text: str) -> str:
    found = _GLOBAL.search(text)
    what = f"a pickled {found[1]}" if found else "pickled objects"
    return (
        f"{path} is not a segkd checkpoint: it holds {what} in addition to tensors and plain "
        "data. It was refused, and nothing in it was executed. If you trust its author, rewrite "
        'the tensors and give the new file: python -c "import torch; s = torch.load('
        f"'{path}', map_location='cpu', weights_only=False); s = s.state_dict() if hasattr(s, "
        "'state_dict') else s; torch.save(s.get('state_dict', s.get('model', s)), 'weights.pth')\""
    )
