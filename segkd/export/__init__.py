"""Exports students as ONNX or torch.export files, quantises them to int8, and times them.

The package itself can be called: ``segkd.export(student, "student.onnx")`` is
``segkd.export.student.export``, since ``segkd.export`` cannot be both a package and a function.
"""

import sys
from types import ModuleType
from typing import Any

from segkd.export.bundle import Bake
from segkd.export.onnx import to_onnx
from segkd.export.program import Exported
from segkd.export.pt2 import to_pt2
from segkd.export.quantize import to_int8

__all__ = ["Bake", "Exported", "to_int8", "to_onnx", "to_pt2"]


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Exported:
        """See ``segkd.export.student.export``."""
        from segkd.export.student import export

        return export(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
