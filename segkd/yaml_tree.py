"""YAML files as trees in which every value has its file and line.

Plain data only: tags and aliases are refused, and scalars follow YAML 1.2, so that ``1e-4`` is a
number, ``012`` is 12, and ``no``, ``on`` and ``1:30`` are text.
"""

import math
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from segkd.errors import ConfigError, DataError
from segkd.texts import decoded

KeyPath = tuple[str | int, ...]  # keys of mappings and positions in lists
COMMAND_LINE, PYTHON = "command line", "keyword arguments"
_KEY = re.compile(r"[\w-]+(\.[\w-]+)*")
_LARGEST = 1 << 20  # bytes; YAML of this size takes seconds, of 16 MB half an hour
_TAG = "tag:yaml.org,2002:"
_SCALARS: dict[str, tuple[re.Pattern[str], str, Callable[[str], object]]] = {
    "null": (re.compile(r"(?:~|null|Null|NULL|)$"), "~nN", lambda text: None),
    "bool": (re.compile(r"(?:true|false)$", re.I), "tTfF", lambda text: text.lower() == "true"),
    "int": (re.compile(r"[-+]?[0-9]+(?:_[0-9]+)*$"), "-+0123456789", int),
    "float": (
        re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"),
        "-+.0123456789",
        float,
    ),
}


@dataclass(frozen=True)
class Node:
    """A value of a config.

    Attributes:
        value: ``dict[str, Node]``, ``list[Node]`` or a plain scalar.
        place: its source: ``"configs/a.yaml:12"`` or ``"command line"``.
        empty: there is nothing after the colon, as in ``kd:``.
    """

    value: Any
    place: str = ""
    empty: bool = False

    def plain(self) -> Any:
        """The same data as dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def child(self, key: Any) -> "Node | None":
        """The entry of a mapping or list, or None."""
        if isinstance(self.value, dict):
            return self.value.get(key)
        inside = isinstance(self.value, list) and isinstance(key, int) and key < len(self.value)
        return self.value[key] if inside else None

    def at(self, path: KeyPath) -> "Node":
        """The value at ``path``, or the deepest existing one on the way to it."""
        node = self
        for key in path:
            child = node.child(key)
            if child is None:
                break
            node = child
        return node

    def has(self, path: KeyPath) -> bool:
        """Whether there is a value at ``path``."""
        node: Node | None = self
        for key in path:
            node = node.child(key) if node else None
        return node is not None

    def replaced(self, path: KeyPath, new: "Node") -> "Node":
        """The tree with another value at ``path``, which must exist."""
        if not path:
            return new
        inner = self.value[path[0]].replaced(path[1:], new)
        return Node({**self.value, path[0]: inner}, self.place)

    def only(self, keys: Sequence[str]) -> "Node":
        """The mapping with these keys only."""
        return Node({key: self.value[key] for key in keys if key in self.value}, self.place)

    def without(self, key: str) -> "Node":
        """The mapping without one key."""
        return Node({k: node for k, node in self.value.items() if k != key}, self.place)


def merge(below: Node, above: Node) -> Node:
    """Merges mappings key by key; any other value of ``above`` replaces the one below."""
    if not (isinstance(below.value, dict) and isinstance(above.value, dict)):
        return above
    merged = dict(below.value)
    for key, node in above.value.items():
        merged[key] = merge(merged[key], node) if key in merged else node
    return Node(merged, below.place if above.place in (COMMAND_LINE, PYTHON) else above.place)


def from_plain(value: Any, place: str) -> Node:
    """The tree of Python data; ``place`` is that of all its values."""
    if isinstance(value, dict):
        return Node({str(key): from_plain(item, place) for key, item in value.items()}, place)
    if isinstance(value, list):
        return Node([from_plain(item, place) for item in value], place)
    return Node(value, place)


def read_file(path: Path) -> Node:
    """The mapping in a YAML file.

    Raises:
        ConfigError: names file and line.
    """
    try:
        size = path.stat().st_size
        if size > _LARGEST:
            raise _too_large(show(path), size)
        text = decoded(path.read_bytes(), show(path))
    except DataError as error:
        raise ConfigError(str(error)) from None
    except OSError as error:
        raise ConfigError(f"{show(path)}: cannot be read: {error.strerror}") from None
    node = parse(text, show(path))
    if not isinstance(node.value, dict):
        got = (
            "nothing"
            if node.value is None
            else "a list"
            if isinstance(node.value, list)
            else (f"'{node.value}'")
        )
        raise ConfigError(f"{show(path)}: got {got}, expected keys and values, e.g. `steps: 1000`")
    return node


def parse(text: str, source: str, lines: bool = True) -> Node:
    """The tree of a YAML text.

    Args:
        text: at most 1 MiB.
        source: name of the text in messages.
        lines: messages contain line numbers.

    Raises:
        ConfigError: the text is not valid YAML, or not plain data; names source and line.
    """
    if len(text) > _LARGEST:
        raise _too_large(source, len(text))
    try:
        root = yaml.compose(text, Loader=_Loader)
        problems: list[str] = []
        tree = _tree(root, source, lines, problems) if root else Node(None, source)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigError(f"{_place(source, mark, lines)}: {error.problem}") from None
    except yaml.reader.ReaderError as error:
        raise ConfigError(f"{source}: character {error.position}: {error.reason}") from None
    except RecursionError:
        raise ConfigError(f"{source}: is nested too deeply") from None
    if problems:
        raise ConfigError("\n".join(problems))
    return Node(tree.value, source, tree.empty)


def overrides_tree(overrides: Sequence[str]) -> Node:
    """``["a.b=c", …]`` as one tree; later ones take precedence.

    Raises:
        ConfigError: an override is not ``key=value``, or its value not valid YAML.
    """
    tree = Node({}, COMMAND_LINE)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not _KEY.fullmatch(key):
            raise ConfigError(
                f"{COMMAND_LINE}: got '{override}', expected key=value, e.g. optim.lr=0.01"
            )
        try:
            node = parse(text, COMMAND_LINE, lines=False)
        except ConfigError as error:
            raise ConfigError(
                f"{COMMAND_LINE}: {override}: the value is not valid YAML ({error}). "
                f"Quote text with special characters: {key}='\"…\"'"
            ) from None
        if node.empty or not text.strip():
            raise ConfigError(f"{COMMAND_LINE}: {key}= has no value: write {key}=null or {key}=''")
        for part in reversed(key.split(".")):
            node = Node({part: node}, COMMAND_LINE)
        tree = merge(tree, node)
    return tree


def dump(data: Any) -> str:
    """YAML that ``parse`` reads back as the same plain data."""
    return yaml.dump(
        data,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=100,
        default_flow_style=None,
    )


def inline(data: Any) -> str:
    """One line of YAML that ``parse`` reads back as the same plain data."""
    text = yaml.dump(
        data,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=math.inf,
        default_flow_style=True,
    )
    return text.removesuffix("\n").removesuffix("\n...")


def typed(key: str, value: Any) -> str:
    """``key=value`` as it is typed into a shell, so that ``overrides_tree`` reads the value."""
    plain = str(value) if isinstance(value, Path) else value
    return shlex.quote(f"{key}={inline(plain)}")


def show(path: Path) -> str:
    """A path for messages: relative if it is below the working folder."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012 (none of YAML 1.1; an own dict, not the base's)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            text = "aliases (*name) are refused: repeat the value, or share a file by `base:`"
            raise yaml.composer.ComposerError(None, None, text, self.peek_event().start_mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, (_pattern, _first, _) in _SCALARS.items():
    _firsts = [*_first, ""] if _name == "null" else list(_first)
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, _firsts)
    _Dumper.add_implicit_resolver(_TAG + _name, _pattern, _firsts)


def _too_large(source: str, size: int) -> ConfigError:
    return ConfigError(
        f"{source}: has {size / 2**20:.1f} MB, a configuration at most {_LARGEST >> 20} MB. Give "
        "the file of the configuration, not one of data"
    )


def _place(source: str, mark: Any, lines: bool) -> str:
    return f"{source}:{mark.line + 1}" if lines and mark else source


def _tree(node: yaml.Node, source: str, lines: bool, problems: list[str]) -> Node:
    place = _place(source, node.start_mark, lines)
    kind = node.tag.removeprefix(_TAG)
    if isinstance(node, yaml.MappingNode) and kind == "map":
        return Node(_mapping(node, source, lines, problems), place)
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        return Node([_tree(item, source, lines, problems) for item in node.value], place)
    if isinstance(node, yaml.ScalarNode) and kind == "str":
        return Node(node.value, place)
    if isinstance(node, yaml.ScalarNode) and kind in _SCALARS:
        try:
            value = _SCALARS[kind][2](node.value)
        except ValueError:
            problems.append(f"{place}: '{node.value[:40]}' is not a valid {kind}")
            return Node(None, place)
        return Node(value, place, empty=node.value == "")
    tag = node.tag.replace(_TAG, "!!")
    problems.append(f"{place}: the tag {tag} is refused: configs are plain data, without objects")
    return Node(None, place)


def _mapping(
    node: yaml.MappingNode, source: str, lines: bool, problems: list[str]
) -> dict[str, Node]:
    entries: dict[str, Node] = {}
    for key, value in node.value:
        place = _place(source, key.start_mark, lines)
        if not isinstance(key, yaml.ScalarNode):
            problems.append(f"{place}: a key must be a word, not a list or mapping")
            continue
        child = _tree(value, source, lines, problems)
        if key.value in entries:
            first = entries[key.value].place
            problems.append(f"{place}: duplicate key '{key.value}', first at {first}")
        entries[key.value] = Node(child.value, place, child.empty)
    return entries
