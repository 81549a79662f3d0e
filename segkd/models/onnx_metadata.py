"""What an exported file says of itself: classes, colours, normalisation, and what is baked in.

A flat table of texts, each of them JSON, as ONNX's metadata takes it: any language reads it.
"""

import json
from collections.abc import Mapping
from typing import Any

from segkd import __version__
from segkd.errors import CheckpointError, shortened
from segkd.export.bundle import Bundle
from segkd.models.network import Network

FORMAT = "segkd-export-1"
_PREFIX = "segkd."


def describe(student: Network, bundle: Bundle) -> dict[str, Any]:
    """The facts of an exported student, as plain data.

    ``mean`` and ``std`` are on the scale 0..1, ``(x / 255 - mean) / std``; they are to be applied
    by the device only where ``bake`` is ``none``. Sides of images must be multiples of
    ``divisor``, or equal ``fixed_size``.
    """
    mean = (student._mean / 255).flatten().tolist()
    std = (1 / (255 * student._scale)).flatten().tolist()
    return {
        "format": FORMAT,
        "version": __version__,
        **student.facts.payload,
        "classes": list(student.classes),
        "palette": student.palette.tolist(),
        "network": student.title,
        "bake": bundle.bake,
        "input": {
            "layout": "BCHW",
            "channels": "RGB",
            "type": "float32" if bundle.bake == "none" else "uint8",
        },
        "outputs": bundle.output_names,
        "mean": [round(value, 6) for value in mean],
        "std": [round(value, 6) for value in std],
        "divisor": bundle.divisor,
        "fixed_size": bundle.fixed_size,
        "resize": bundle.resize,
    }


def to_texts(facts: Mapping[str, Any]) -> dict[str, str]:
    """Facts as texts by prefixed name."""
    return {_PREFIX + key: json.dumps(value) for key, value in facts.items()}


def from_texts(texts: Mapping[str, str], where: str) -> dict[str, Any]:
    """Facts back from ``to_texts``. Raises CheckpointError if ``where`` is not of segkd."""
    own = {key.removeprefix(_PREFIX): v for key, v in texts.items() if key.startswith(_PREFIX)}
    try:
        facts = {key: json.loads(value) for key, value in own.items()}
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{where}: its metadata is no JSON ({error}). Export it again"
        ) from None
    if facts.get("format") != FORMAT:
        got = (
            f"metadata of format {shortened(facts['format'])}"
            if "format" in facts
            else "no such metadata"
        )
        raise CheckpointError(
            f"{where} has {got}: classes and normalisation are unknown. Give a file that "
            "`segkd export` of this version wrote"
        )
    return facts
