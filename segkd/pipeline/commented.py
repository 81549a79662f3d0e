"""YAML with a comment on each choice."""

from collections.abc import Iterator, Mapping
from typing import Any

from segkd.yaml_tree import inline

_WIDTH = 100
_SHORT = 72  # a mapping of at most so many characters is one line


def commented(data: Mapping[str, Any], notes: Mapping[str, str], head: str = "") -> str:
    """The text of a YAML file.

    Args:
        data: plain values.
        notes: comments by dotted key; entries of lists are numbered: ``classes.0``.
        head: comment above everything, in lines.
    """
    lines = [f"# {line}".rstrip() for line in head.splitlines()]
    return "\n".join([*lines, *_mapping(data, notes, "", 0)]) + "\n"


def _mapping(
    data: Mapping[str, Any], notes: Mapping[str, str], above: str, depth: int
) -> Iterator[str]:
    indent = "  " * depth
    for key, value in data.items():
        path = f"{above}{key}"
        note = notes.get(path, "")
        inner = any(other.startswith(f"{path}.") for other in notes)
        is_block = isinstance(value, Mapping) and value
        if is_block and (inner or len(inline(value)) > _SHORT):
            yield from _with_note(f"{indent}{inline(str(key))}:", note, indent)
            yield from _mapping(value, notes, f"{path}.", depth + 1)
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            yield from _with_note(f"{indent}{inline(str(key))}:", note, indent)
            for number, entry in enumerate(value):
                own = notes.get(f"{path}.{number}", "")
                yield from _with_note(f"{indent}  - {inline(entry)}", own, f"{indent}  ")
        else:
            yield from _with_note(f"{indent}{inline(str(key))}: {inline(value)}", note, indent)


def _with_note(line: str, note: str, indent: str) -> Iterator[str]:
    """The line with its comment behind it, or above it if it is long."""
    if note and len(line) + len(note) + 4 > _WIDTH:
        yield f"{indent}# {note}"
        note = ""
    yield f"{line}  # {note}" if note else line
