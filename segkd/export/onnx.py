"""Exports ONNX files for any batch and image size, checked against PyTorch before writing."""

from pathlib import Path

import torch

from segkd.errors import SegKDError
from segkd.export.bundle import Bake, Bundle, Size, describe
from segkd.export.lane_decoder import LaneDecoding
from segkd.export.program import (
    Exported,
    compare,
    compared_shapes,
    export_program,
    traced_size,
)
from segkd.export.quiet import quiet
from segkd.extras import require
from segkd.files import write_atomic
from segkd.models.network import Network
from segkd.models.onnx_metadata import to_texts
from segkd.models.onnx_network import open_session

INPUT = "images"


def to_onnx(
    student: Network,
    path: str | Path,
    *,
    size: Size | None = None,
    dynamic: bool = True,
    bake: Bake = "normalize",
    resize: Size | None = None,
    lanes: LaneDecoding | None = None,
    opset: int | None = None,
) -> Exported:
    """Writes a student as an ONNX file, atomically.

    Args:
        student: any network of segkd; it is not changed.
        path: path of the file.
        size: (H, W) at which it is traced and compared; the only one if not ``dynamic``. The
            nearest valid size is used; None: that of the training.
        dynamic: any batch, and any size whose sides are multiples of the network's divisor; else
            one image of ``size``.
        bake: ``none``: normalised floats in, logits out; ``normalize``: uint8 in, logits out;
            ``labels``: uint8 in, class ids at the size of the images out; ``lanes``: uint8 in,
            points of lanes and existence out.
        resize: (h, w) to which images are resized inside the file.
        lanes: see ``Bundle``.
        opset: version of the ONNX operators, 18 or later, for old runtimes; default: torch's.

    Raises:
        ConfigError: an unknown ``bake``, or a ``size`` that the file cannot have.
        SegKDError: a package is missing, the network cannot be exported, or its outputs differ.
    """
    require("onnx", "onnxscript", "onnxruntime")
    path, bundle = Path(path), Bundle(student, bake, resize, lanes)
    size = traced_size(student, bundle, size)
    program = export_program(bundle, size, dynamic)
    written = _translate(program, bundle, opset)
    facts = describe(student, bundle, None if dynamic else size)
    written.model.metadata_props.update(to_texts(facts))
    data = written.model_proto.SerializeToString()
    session = open_session(data)
    shapes = compared_shapes(bundle, size, dynamic)
    difference = compare(bundle, lambda images: session.run(None, {INPUT: images.numpy()}), shapes)
    write_atomic(path, lambda file: file.write(data))
    return Exported(path, difference, tuple(shapes), bake)


def _translate(
    program: torch.export.ExportedProgram, bundle: Bundle, opset: int | None
) -> torch.onnx.ONNXProgram:
    """The ONNX program. Raises SegKDError if an operator has no counterpart."""
    try:
        with quiet():
            written = torch.onnx.export(
                program,
                (),
                dynamo=True,
                input_names=[INPUT],
                output_names=bundle.output_names,
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:  # of torch.onnx, onnxscript or onnx
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SegKDError(
            f"{bundle.network.title} cannot be written as ONNX: {reason}. Try --format pt2"
        ) from error
    assert written is not None  # as always with a dynamo export
    version = written.model.opset_imports.get("")
    if opset is not None and version != opset:
        raise SegKDError(
            f"{bundle.network.title} cannot be written as ONNX with opset {opset}; {version} is "
            "possible"
        )
    for node in written.model.graph:  # half of a small file, used by the exporter only
        node.metadata_props.clear()
    return written
