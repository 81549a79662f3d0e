"""The command with which TensorRT builds an engine from an exported file."""

import shlex
from pathlib import Path

_BATCH = 8  # largest batch of an engine for any batch


def trtexec_line(path: Path, size: tuple[int, int], *, dynamic: bool, int8: bool = False) -> str:
    """``trtexec …`` for a float file, or for an int8 one without zero points, as typed in a shell.

    Args:
        path: of the file.
        size: (H, W) of images for which the engine is made fastest.
        dynamic: whether the file takes any batch.
        int8: whether the file is quantised.
    """
    height, width = size
    files = (f"--onnx={path}", f"--saveEngine={path.with_suffix('.engine')}")
    line = f"trtexec {' '.join(map(shlex.quote, files))} --fp16"
    line += " --int8" if int8 else ""
    if not dynamic:
        return line
    one, most = (f"images:{batch}x3x{height}x{width}" for batch in (1, _BATCH))
    return f"{line} --minShapes={one} --optShapes={one} --maxShapes={most}"
