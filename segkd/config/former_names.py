"""Keys and values of configurations that had another name in an earlier version.

They still work, with a warning that names the new one.
"""

import warnings

from segkd.errors import ConfigError, FormerName
from segkd.yaml_tree import Node

KEYS = {
    ("schedule", "floor"): "min_lr_ratio",
    ("schedule", "start"): "div_factor",
    ("schedule", "end"): "final_div_factor",
    ("schedule", "peak"): "pct_start",
}
VALUES = {("methods", "*", "mask"): {"inside": "not_padding"}}
_ABOVE: tuple[tuple[str, ...], ...] = ((), ("common",), ("runs", "*"))  # places of a run's keys


def with_current_names(tree: Node, quiet: bool = False) -> Node:
    """The tree with current names.

    Args:
        tree: of one file, or of overrides.
        quiet: no warning, for files that segkd itself wrote.

    Raises:
        ConfigError: a key is given under both names.
    """
    for above in _ABOVE:
        for path, new in KEYS.items():
            for *parent, old in _matching(tree, (*above, *path)):
                tree = _renamed(tree, tuple(parent), old, new, quiet)
        for value_path, table in VALUES.items():
            for found in _matching(tree, (*above, *value_path)):
                node = tree.at(found)
                if isinstance(node.value, str) and node.value in table:
                    new = table[node.value]
                    _warn(node, f"{'.'.join(found)}: {node.value}", new, quiet)
                    tree = tree.replaced(found, Node(new, node.place))
    return tree


def _renamed(tree: Node, parent: tuple[str, ...], old: str, new: str, quiet: bool) -> Node:
    block = tree.at(parent)
    node = block.value[old]
    if new in block.value:
        raise ConfigError(
            f"{node.place}: {'.'.join((*parent, old))}: is now called `{new}`, which is "
            f"also given, at {block.value[new].place}. Remove `{old}`"
        )
    _warn(node, ".".join((*parent, old)), new, quiet)
    entries = {new if key == old else key: value for key, value in block.value.items()}
    return tree.replaced(parent, Node(entries, block.place, block.empty))


def _matching(tree: Node, pattern: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The paths of a tree that match a pattern, in which ``*`` is any key."""
    found: list[tuple[tuple[str, ...], Node]] = [((), tree)]
    for part in pattern:
        found = [
            ((*path, key), child)
            for path, node in found
            if isinstance(node.value, dict)
            for key, child in node.value.items()
            if part in ("*", key)
        ]
    return [path for path, _ in found]


def _warn(node: Node, old: str, new: str, quiet: bool) -> None:
    if not quiet:
        warnings.warn(f"{node.place}: {old} is now called `{new}`", FormerName, stacklevel=2)
