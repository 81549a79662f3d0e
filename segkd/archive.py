"""Files of tensors as torch.save writes them: whole, and without executing anything in them."""

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

_LOOK = 512  # bytes that tell what a file is
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_WHAT = (  # how files begin that are no tensors, what they are, what to type
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
        "is a web page: the address that was downloaded asks to log in or to confirm first. "
        "Download the file itself, e.g. by a browser",
    ),
    (
        rb"\s*[{\[]\s*[\"\]}{]",
        "is JSON text and holds no tensors. Give the file of weights beside it",
    ),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|Rar!|7z\xbc\xaf", "is a compressed archive. Unpack it first"),
    (rb"\x89HDF", "is an HDF5 file, of Keras or MATLAB. Give weights that torch.save wrote"),
)


def read_archive(path: Path) -> Any:
    """What ``torch.save`` wrote, on the CPU.

    Plain data and tensors are read, and what many training scripts leave beside them: numbers of
    NumPy, paths, a Namespace of arguments. No other class is, and nothing is executed.

    Raises:
        CheckpointError: the file is missing, damaged (its checksums are compared), no file of
            tensors, or holds other pickled objects; says what it is and what to type.
    """
    refuse_other_kinds(path)
    _check_sums(path)
    try:
        with torch.serialization.safe_globals(_harmless()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about protocols of pickle
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refused(path, str(error))) from error
    except Exception as error:  # damaged pickles raise whatever their reader stumbles over
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {reason}") from error


def refuse_other_kinds(path: Path) -> None:
    """Raises CheckpointError for a file that is known to be something else."""
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
    """torch writes a checksum of each part, and does not look at it when it reads."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except Exception as error:  # zipfile's own, and whatever a damaged table leads to
        broken = f"its table ({error})"
    if broken is not None:
        raise CheckpointError(
            f"{path} is damaged and cannot be read as a checkpoint: the checksum of {broken} is "
            "wrong. Take another copy, or an earlier checkpoint"
        )


def _harmless() -> list:
    multiarray = getattr(np, "_core", None) or np.core
    scalars = [np.dtype, multiarray.multiarray.scalar]
    scalars += [(multiarray.multiarray.scalar, "numpy.core.multiarray.scalar")]
    kinds = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?")]
    paths = [pathlib.PosixPath, pathlib.PurePosixPath, pathlib.PureWindowsPath]
    paths += [(pathlib.PureWindowsPath, "pathlib.WindowsPath")]
    return [*scalars, *kinds, *paths, argparse.Namespace]


def _refused(path: Path, text: str) -> str:
    found = _GLOBAL.search(text)
    what = f"a pickled {found[1]}" if found else "pickled objects"
    return (
        f"{path} is no segkd checkpoint: it holds {what}, beside tensors and plain data. It was "
        "refused, and nothing in it was executed. If you trust its author, write the tensors "
        'anew and give the new file: python -c "import torch; s = torch.load('
        f"'{path}', map_location='cpu', weights_only=False); s = s.state_dict() if hasattr(s, "
        "'state_dict') else s; torch.save(s.get('state_dict', s.get('model', s)), 'weights.pth')\""
    )
