"""Exports torch.export files (.pt2), checked against PyTorch before writing.

Read them with ``torch.export.load(path).module()``, which does not need segkd.
"""

import io
import json
from pathlib import Path

import torch

from segkd.export.bundle import Bake, Bundle, Size, describe
from segkd.export.lane_decoder import LaneDecoding
from segkd.export.program import (
    Exported,
    compare,
    compared_shapes,
    export_program,
    traced_size,
)
from segkd.files import write_atomic
from segkd.models.network import Network

FACTS = "segkd.json"  # name of the metadata inside the file


def to_pt2(
    student: Network,
    path: str | Path,
    *,
    size: Size | None = None,
    dynamic: bool = True,
    bake: Bake = "normalize",
    resize: Size | None = None,
    lanes: LaneDecoding | None = None,
) -> Exported:
    """Writes a student as a torch.export program; arguments and errors as of ``to_onnx``."""
    path, bundle = Path(path), Bundle(student, bake, resize, lanes)
    size = traced_size(student, bundle, size)
    program = export_program(bundle, size, dynamic)
    buffer = io.BytesIO()
    facts = json.dumps(describe(student, bundle, None if dynamic else size))
    torch.export.save(program, buffer, extra_files={FACTS: facts})
    buffer.seek(0)
    module = torch.export.load(buffer).module()
    shapes = compared_shapes(bundle, size, dynamic)
    difference = compare(bundle, lambda images: [t.numpy() for t in module(images)], shapes)
    write_atomic(path, lambda file: file.write(buffer.getvalue()))
    return Exported(path, difference, tuple(shapes), bake)
