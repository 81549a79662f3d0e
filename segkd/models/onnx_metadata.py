"""What an exported file says of itself: classes, colours, normalisation, and what is baked in.

A flat table of texts, each of them JSON, as ONNX's metadata takes it: any language reads it.
"""

import json
from collections.abc import Mapping
from typing import Any

from segkd.errors import CheckpointError, shortened

FORMAT = "segkd-export-1"
_PREFIX = "segkd."


def to_texts(facts: Mapping[str, Any]) -> dict[str, str]:
    """StudentInfo as texts by prefixed name."""
    return {_PREFIX + key: json.dumps(value) for key, value in facts.items()}


def from_texts(texts: Mapping[str, str], where: str) -> dict[str, Any]:
    """StudentInfo back from ``to_texts``. Raises CheckpointError if ``where`` is not of segkd."""
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
