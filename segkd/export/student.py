"""``segkd.export``: exports a run folder, a checkpoint or a module in one call."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from segkd.errors import ConfigError
from segkd.export.bundle import Bake, Size
from segkd.export.calibration import spread_frames
from segkd.export.choice import best_network
from segkd.export.onnx import to_onnx
from segkd.export.program import Exported
from segkd.export.pt2 import to_pt2
from segkd.export.quantize import check_calibration, int8_path, to_int8
from segkd.inference.images import Image, as_array
from segkd.inference.student import StudentSource, opened


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
    """Exports a student as one file, and compares its outputs with PyTorch's.

    Args:
        student, module, classes: see ``opened``. Of the run folder of a student with peers like it,
            the network with the highest score is exported.
        path: path of the file: ``.onnx``, or ``.pt2`` for torch.export.
        size: (H, W) to trace and compare at; default: that of the training. Files of ``lanes``
            have only one.
        dynamic: for any batch and size; else for one image of ``size``.
        bake: ``none``: normalised floats to logits; ``normalize``: uint8 to logits; ``labels``:
            uint8 to class ids at the size of the image; ``lanes``: uint8 to points of lanes and
            existence.
        resize: (h, w) to which images are resized inside the file.
        opset: version of the ONNX operators, for old runtimes.
        int8: images, or a folder of images, of which 64 are taken, to calibrate a quantised file,
            which is written next to the other: ``student.int8.onnx`` next to ``student.onnx``. Of
            lane students these are whole frames.

    Returns:
        The path, and the largest difference from PyTorch.

    Raises:
        ConfigError: arguments that do not go together, or an unknown ``bake``.
        SegKDError: a package is missing, the network cannot be exported, its outputs differ, or
            there are no images for ``int8``.
    """
    path = Path(path).expanduser()
    kind = path.suffix.lower()
    if kind not in (".onnx", ".pt2"):
        raise ConfigError(f"path: got '{path}', expected a file that ends with .onnx or .pt2")
    if kind == ".pt2" and (opset is not None or int8 is not None):
        raise ConfigError("opset and int8 are for .onnx: remove them, or give a path to .onnx")
    if isinstance(student, str | Path) and module is None:
        student = best_network(student).source
    network = opened(student, module, classes)
    images = None
    if int8 is not None:  # checked before the float file is written
        images = _arrays(int8)
        check_calibration(network, images, student)
    if kind == ".pt2":
        return to_pt2(network, path, size=size, dynamic=dynamic, bake=bake, resize=resize)
    written = to_onnx(
        network, path, size=size, dynamic=dynamic, bake=bake, resize=resize, opset=opset
    )
    if images is not None:
        to_int8(path, int8_path(path), images)
    return written


def _arrays(images: Sequence[Image] | str | Path) -> list[np.ndarray]:
    if isinstance(images, str | Path):
        return spread_frames(images)
    return [as_array(image) for image in images]
