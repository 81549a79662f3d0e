"""Lanes of pictures and videos: from a network's maps to points, files and overlays."""

import importlib
from typing import Any

__all__ = ["Lane", "LaneDetector"]


def __getattr__(name: str) -> Any:
    """Loads the detector at its first use: the configuration imports this package, too."""
    if name in __all__:
        return getattr(importlib.import_module("segkd.lanes.detector"), name)
    raise AttributeError(f"module 'segkd.lanes' has no attribute '{name}'")
