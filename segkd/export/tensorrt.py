"""The command with which TensorRT builds an engine from an exported file."""

from pathlib import Path

_BATCH = 8  # largest batch of an engine for any batch


def trtexec_line(path: Path, size: tuple[int, int], *, dynamic: bool) -> str:
    """``trtexec …`` for a float file, or for an int8 one without zero points.

    Args:
        path: of the file.
        size: (H, W) of images for which the engine is made fastest.
        dynamic: whether the file takes any batch.
    """
    height, width = size
    line = f"trtexec --onnx={path} --saveEngine={path.with_suffix('.engine')} --fp16"
    line += " --int8" if path.stem.endswith(".int8") else ""
    if not dynamic:
        return line
    one, most = (f"images:{batch}x3x{height}x{width}" for batch in (1, _BATCH))
    return f"{line} --minShapes={one} --optShapes={one} --maxShapes={most}"
