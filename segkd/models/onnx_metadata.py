"""Metadata of an exported file: classes, colours, normalisation, and what is baked in.

A flat table of JSON strings, the form of ONNX metadata, which any language can read.
"""

import json
from collections.abc import Mapping
from typing import Any

from segkd.errors import CheckpointError, shortened

FORMAT = "segkd-export-1"
_PREFIX = "segkd."


def to_texts(facts: Mapping[str, Any]) -> dict[str, str]:
    """Facts about a student as JSON strings by prefixed name."""
    return {_PREFIX + key: json.dumps(value) for key, value in facts.items()}


def has_metadata(texts: Mapping[str, str]) -> bool:
    """Whether any of the metadata is of segkd."""
    return any(key.startswith(_PREFIX) for key in texts)


def from_texts(texts: Mapping[str, str], where: str) -> dict[str, Any]:
    """The inverse of ``to_texts``.

    Raises:
        CheckpointError: the file ``where`` was not exported by segkd.
    """
    own = {key.removeprefix(_PREFIX): v for key, v in texts.items() if key.startswith(_PREFIX)}
    try:
        facts = {key: json.loads(value) for key, value in own.items()}
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{where}: its metadata is not valid JSON ({error}). Export it again"
        ) from None
    if facts.get("format") != FORMAT:
        got = (
            f"metadata of format {shortened(facts['format'])}"
            if "format" in facts
            else "no such metadata"
        )
        raise CheckpointError(
            f"{where} has {got}: classes and normalisation are unknown. Give a file written by "
            "`segkd export` of this version"
        )
    return facts
