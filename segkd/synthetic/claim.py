"""A folder of drawn scenes says which ones it holds, so that others are never added to them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segkd.errors import DataError
from segkd.files import write_text
from segkd.texts import parse_json, read_text

FACTS = "scenes.json"
_NONE = "nothing"  # of a key that one of both does not have


def claim(out: Path, facts: Mapping[str, Any]) -> None:
    """Records which scenes a folder holds.

    Args:
        out: the folder; it need not exist.
        facts: plain data on which the scenes depend, without their numbers.

    Raises:
        DataError: the folder holds scenes of other facts, something else, or a broken record.
    """
    path, wanted = out / FACTS, json.loads(json.dumps(dict(facts)))  # as they are read back
    if path.is_file():
        stored = parse_json(read_text(path), str(path))
        if not isinstance(stored, dict):
            raise DataError(f"{path}: says nothing of the scenes beside it. Remove the folder")
        for key in sorted(stored.keys() | wanted.keys()):
            there, here = stored.get(key, _NONE), wanted.get(key, _NONE)
            if there != here:
                raise DataError(
                    f"{out} holds scenes with another {key}: {there}, not {here}. Choose another "
                    "--out, or remove the folder"
                )
    elif out.is_dir() and any(out.iterdir()):
        raise DataError(
            f"{out} is not empty, and has no {FACTS} that says which scenes it holds. Choose "
            "another --out"
        )
    write_text(path, json.dumps(wanted))
