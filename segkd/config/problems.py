"""Messages about problems of a config: file, line, key, what was got, what was expected."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from segkd.config.entries import all_keys, block_at
from segkd.errors import ConfigError, did_you_mean
from segkd.yaml_tree import KeyPath, Node

_PLAIN_WORDS = (
    ("a valid dictionary", "keys and values"),
    ("a valid integer", "a whole number"),
    ("a valid number", "a number"),
    ("a valid boolean", "true or false"),
    ("a valid string", "text"),
    ("a valid list", "a list [a, b]"),
    ("a valid tuple", "a list [a, b]"),
    ("not a valid path", "a path"),
)


def explain(
    error: ValidationError,
    tree: Node,
    model: type[BaseModel],
    prefix: Callable[[KeyPath], str] = lambda path: "",
) -> list[str]:
    """One line per problem.

    Args:
        error: of pydantic.
        tree: the config.
        model: the class that it was checked against.
        prefix: what is written before a key, by its path.
    """
    found: dict[KeyPath, list[Mapping[str, Any]]] = {}
    for one in error.errors(include_url=False):
        found.setdefault(_path(one, tree), []).append(one)
    # Of a union (a number or a pair), only the branch that was parsed furthest is reported.
    deepest = [p for p in found if not any(q != p and q[: len(p)] == p for q in found)]
    lines = []
    for path in deepest:
        place = tree.at(path).place
        key = f"{prefix(path)}{'.'.join(map(str, path))}"
        where = f"{place}: {key}" if key else place
        lines.append(f"{where}: {_say(found[path], path, tree, model)}")
    return lines


def raise_if(problems: list[str], subject: str) -> None:
    """Raises one ConfigError with all problems, sorted by file and line, if there are any."""
    problems = sorted(dict.fromkeys(problems), key=_file_and_line)
    if len(problems) == 1:
        raise ConfigError(problems[0])
    if problems:
        raise ConfigError(f"{len(problems)} problems in {subject}:\n  " + "\n  ".join(problems))


def _file_and_line(problem: str) -> tuple[str, int]:
    match = re.match(r"(.*?):(\d+): ", problem)
    return (match[1], int(match[2])) if match else ("", 0)


def _path(one: Mapping[str, Any], tree: Node) -> KeyPath:
    """The keys that lead to the problem, without names of union branches."""
    path: list[str | int] = []
    node = tree
    for part in one["loc"]:
        child = node.child(part)
        if child is not None:
            path.append(part)
            node = child
    if one["type"] == "missing":
        path.append(one["loc"][-1])
    return tuple(path)


def _say(errors: list[Mapping[str, Any]], path: KeyPath, tree: Node, model: type[BaseModel]) -> str:
    kind, text, node = errors[0]["type"], errors[0]["msg"], tree.at(path)
    if kind == "missing":
        return "is missing" + _described(block_at(path[:-1], tree, model), path[-1])
    if kind == "extra_forbidden":
        return "unknown key." + _known_keys(path, tree, model)
    if node.empty:
        return "is empty: write a value ({} for the defaults), or remove the line"
    if kind in ("refused", "unknown_name"):
        return text
    if kind == "value_error":
        return text.removeprefix("Value error, ")
    expected = " or ".join(dict.fromkeys(_expected(one["msg"]) for one in errors))
    got = node.plain()
    hint = did_you_mean(got, re.findall(r"'([^']*)'", expected)) if isinstance(got, str) else ""
    return f"got {_short(got)}, expected {expected}{'.' + hint if 'mean' in hint else ''}"


def _expected(message: str) -> str:
    """What pydantic expected, e.g. ``a number greater than 0``."""
    text = re.sub(r"^Input (should be|is) ", "", message)
    text = re.sub(r"(, unable to parse.*| or instance of .*|, got a number.*| type)$", "", text)
    text = re.sub(r"^(greater|less) than", r"a number \1 than", text)
    for theirs, ours in _PLAIN_WORDS:
        text = text.replace(theirs, ours)
    return text


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _known_keys(path: KeyPath, tree: Node, model: type[BaseModel]) -> str:
    """Suggests for an unknown key one of the same block, or of another block."""
    name, block = str(path[-1]), block_at(path[:-1], tree, model)
    known = list(block.model_fields) if block else []
    hint = did_you_mean(name, known)
    if "Did you mean" in hint:
        return hint
    elsewhere = [dotted for dotted in all_keys(model) if dotted[-1] == name]
    if elsewhere:
        other = f"id you mean '{'.'.join(elsewhere[0])}'?"
        return f"{hint} Or d{other}" if known and len(path) > 1 else f" D{other}"
    return hint


def _described(block: type[BaseModel] | None, key: Any) -> str:
    field = block.model_fields.get(key) if block else None
    return f" ({field.description})" if field and field.description else ""
