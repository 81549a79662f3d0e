"""segkd: distils large segmentation networks into small fast ones."""

import importlib
from typing import Any

from segkd.cpus import wait_briefly
from segkd.errors import SegKDError

__version__ = "0.1.0"
__all__ = [
    "SegKDError",
    "distill",
    "evaluate",
    "export",
    "load_student",
    "predict",
    "save_pretrained",
    "train",
]


def __dir__() -> list[str]:
    """Names for tab completion, also of what is not loaded yet."""
    return sorted({*globals(), *__all__, "lanes"})


def __getattr__(name: str) -> Any:
    """Loads the Python interface at its first use, so that ``import segkd`` stays cheap."""
    if name not in (*__all__, "lanes"):
        raise AttributeError(f"module 'segkd' has no attribute '{name}'")
    wait_briefly()  # before torch is imported, unless the caller did so
    if name == "lanes":
        return importlib.import_module("segkd.lanes")
    return getattr(importlib.import_module("segkd.api"), name)
