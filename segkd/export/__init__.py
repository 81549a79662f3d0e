"""Students for devices: one ONNX or torch.export file, int8 weights, and what they cost in time."""

from segkd.export.bundle import Bake
from segkd.export.onnx import to_onnx
from segkd.export.pt2 import to_pt2
from segkd.export.quantize import to_int8

__all__ = ["Bake", "to_int8", "to_onnx", "to_pt2"]
