"""Facts about a trained student besides its network: classes, colours, origin."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np

from segkd.data.palette import default_palette
from segkd.errors import CheckpointError
from segkd.models.payload import stored_config
from segkd.models.quantization_facts import QuantizationFacts

KEYS = (
    *("classes", "palette", "ignore_index", "dataset", "config", "step"),
    *("miou", "score", "score_name", "lanes", "quantization"),
)


@dataclass(frozen=True, eq=False)
class StudentInfo:
    """Contents of a student's file besides the weights.

    Attributes:
        classes: K names.
        palette: (K, 3) uint8 RGB.
        payload: all of it as plain data, for files derived from this one.
        named: whether the names are known; else they are made up from the ids.
    """

    classes: tuple[str, ...]
    palette: np.ndarray
    payload: Mapping[str, Any]
    named: bool = True

    @classmethod
    def of(cls, payload: Mapping[str, Any]) -> Self:
        """From the payload of a student's file; default colours if it has none."""
        classes = tuple(payload["classes"])
        palette = payload.get("palette")
        colours = default_palette(len(classes)) if palette is None else np.array(palette, np.uint8)
        kept = {key: payload[key] for key in KEYS if payload.get(key) is not None}
        return cls(classes, colours, kept, named=not unnamed(classes))

    @classmethod
    def unknown(cls, num_classes: int) -> Self:
        """For a network that was not read from a file."""
        made_up = cls.of({"classes": [f"class {number}" for number in range(num_classes)]})
        return replace(made_up, named=False)

    @cached_property
    def quantization(self) -> QuantizationFacts | None:
        """How it was quantised in training; None: it was not."""
        facts = self.payload.get("quantization")
        return None if facts is None else QuantizationFacts.model_validate(facts)

    @cached_property
    def resize(self) -> tuple[int, int] | None:
        """(H, W) to which training images were resized; None: not resized."""
        return self._size("resize")

    @cached_property
    def crop(self) -> tuple[int, int] | None:
        """(H, W) of the training crops; None: no crops."""
        return self._size("crop")

    def _size(self, key: str) -> tuple[int, int] | None:
        size = (stored_config(self.payload).get("data") or {}).get(key)
        if size is None:
            return None
        if not isinstance(size, list) or [type(side) for side in size] != [int, int]:
            raise CheckpointError(
                f"the configuration in the student's file has data.{key}: {size!r}, expected "
                "[height, width]. Use an undamaged copy of the file"
            )
        return size[0], size[1]


def unnamed(classes: Sequence[str]) -> bool:
    """Whether classes have only the names that transformers gives (``LABEL_0`` …)."""
    return all(re.fullmatch(r"LABEL_\d+", name) for name in classes)
