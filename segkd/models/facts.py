"""What is known of a trained student besides its network: classes, colours, origin."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import yaml

from segkd.viz.palette import default_palette

KEYS = (
    *("classes", "palette", "ignore_index", "dataset", "config", "step"),
    *("miou", "score", "score_name", "lanes"),
)


@dataclass(frozen=True, eq=False)
class Facts:
    """Facts that a student's file holds beside the weights.

    Attributes:
        classes: K names.
        palette: (K, 3) uint8 RGB.
        payload: all of it as plain data, for files that are made from this one.
    """

    classes: tuple[str, ...]
    palette: np.ndarray
    payload: Mapping[str, Any]

    @classmethod
    def of(cls, payload: Mapping[str, Any]) -> Self:
        """The facts in the payload of a student's file; colours are made up if it has none."""
        classes = tuple(payload["classes"])
        palette = payload.get("palette")
        colours = default_palette(len(classes)) if palette is None else np.array(palette, np.uint8)
        kept = {key: payload[key] for key in KEYS if payload.get(key) is not None}
        return cls(classes, colours, kept)

    @classmethod
    def unknown(cls, num_classes: int) -> Self:
        """Of a network that was read from no file."""
        return cls.of({"classes": [f"class {number}" for number in range(num_classes)]})

    @cached_property
    def resize(self) -> tuple[int, int] | None:
        """(H, W) to which its images were brought in training; None: they kept their size."""
        return self._size("resize")

    @cached_property
    def crop(self) -> tuple[int, int] | None:
        """(H, W) of the training crops, if there were any."""
        return self._size("crop")

    def _size(self, key: str) -> tuple[int, int] | None:
        stored = yaml.safe_load(self.payload.get("config") or "") or {}
        size = (stored.get("data") or {}).get(key)
        return None if size is None else (int(size[0]), int(size[1]))
