"""``segkd.export``: one call from a run folder, a checkpoint or a module to a file for devices."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from segkd.errors import ConfigError
from segkd.export.bundle import Bake, Size
from segkd.export.onnx import to_onnx
from segkd.export.program import Exported
from segkd.export.pt2 import to_pt2
from segkd.export.quantize import to_int8
from segkd.inference.images import Image, as_array
from segkd.inference.media import open_source
from segkd.inference.student import StudentSource, opened

_SIZE = (512, 1024)  # of a student that does not say what it was trained on


def export(
    student: StudentSource,
    path: str | Path,
    *,
    module: nn.Module | None = None,
    classes: Sequence[str] = (),
    size: Size | None = None,
    dynamic: bool = True,
    bake: Bake = "normalize",
    resize: Size | None = None,
    opset: int | None = None,
    int8: Sequence[Image] | str | Path | None = None,
) -> Exported:
    """Writes a student alone as one file for devices, and compares its numbers with PyTorch's.

    Args:
        student, module, classes: see ``opened``.
        path: of the file: ``.onnx``, or ``.pt2`` for torch.export.
        size: (H, W) to trace and compare at; default: that of the training.
        dynamic: for any batch and size; else for one image of ``size``.
        bake: ``none``: normalised floats to logits; ``normalize``: bytes to logits; ``labels``:
            bytes to class ids at the size of the image.
        resize: (h, w) to which images are brought inside.
        opset: of ONNX, for old runtimes.
        int8: images, or a folder of them, to calibrate a quantised file on, which is written
            beside the other: ``student.int8.onnx`` beside ``student.onnx``.

    Returns:
        The path, and how far its numbers are from PyTorch's.

    Raises:
        SegKDError: a package is missing, the network cannot be exported, or its numbers differ.
    """
    path = Path(path).expanduser()
    kind = path.suffix.lower()
    if kind not in (".onnx", ".pt2"):
        raise ConfigError(f"path: got '{path}', expected a file that ends with .onnx or .pt2")
    if kind == ".pt2" and (opset is not None or int8 is not None):
        raise ConfigError("opset and int8 are for .onnx: leave them out, or give such a path")
    if not isinstance(student, nn.Module) and str(student).endswith((".onnx", ".pt2")):
        raise ConfigError(f"{student} is an exported file. Give the checkpoint it came from")
    network = opened(student, module, classes)
    pictures = None if int8 is None else _arrays(int8)
    size = size or network.info.resize or network.info.crop or _SIZE
    common = {"size": size, "dynamic": dynamic, "bake": bake, "resize": resize}
    if kind == ".pt2":
        return to_pt2(network, path, **common)
    written = to_onnx(network, path, opset=opset, **common)
    if pictures is not None:
        to_int8(path, path.with_name(f"{path.stem}.int8{path.suffix}"), pictures)
    return written


def _arrays(pictures: Sequence[Image] | str | Path) -> list[np.ndarray]:
    if isinstance(pictures, str | Path):
        frames = open_source(pictures).frames()
        return [frame.image for frame in frames if frame.image is not None]
    return [as_array(picture) for picture in pictures]
