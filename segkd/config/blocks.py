"""Which class describes a place in a config: the schema, walked along dotted keys."""

import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from segkd.config.entries import data_class, loss_class, method_class
from segkd.errors import ConfigError
from segkd.yaml_tree import Node

_TYPED = {
    ("data",): lambda key, value: data_class(value),
    ("methods", "*"): method_class,
    ("task", "losses", "*"): loss_class,
}


def block_at(path: tuple, tree: Node, model: type[BaseModel]) -> type[BaseModel] | None:
    """The class of the mapping at ``path`` of a config of ``model``; None if there is none."""
    block = _at(path, tree, model)
    return block if isinstance(block, type) else None


def resets(path: tuple, tree: Node, model: type[BaseModel]) -> bool:
    """Whether a ``null`` at ``path`` is no value, but takes the key or entry away."""
    parent = _at(path[:-1], tree, model)
    if isinstance(parent, _Entries):
        return True
    field = parent.model_fields.get(path[-1]) if parent else None
    return field is not None and type(None) not in typing.get_args(field.annotation)


class _Entries:
    """Stands for ``dict[str, Block]``."""

    def __init__(self, entry: type[BaseModel]) -> None:
        self.entry = entry


def _inner(annotation: Any) -> Any:
    """The block inside an annotation: Block, Block | None, dict[str, Block]; None if none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is dict:
        entry = _inner(args[1])
        return _Entries(entry) if entry else None
    if origin in (typing.Union, types.UnionType, typing.Annotated):
        return next((block for block in map(_inner, args) if block), None)
    return None


def _matches(path: tuple, pattern: tuple[str, ...]) -> bool:
    pairs = zip(path, pattern, strict=False)
    return len(path) == len(pattern) and all(q in ("*", p) for p, q in pairs)


def all_keys(block: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Dotted keys of all blocks that always exist, the shallow ones first."""
    yield from ((*above, name) for name in block.model_fields)
    for name, field in block.model_fields.items():
        inner = _inner(field.annotation)
        if isinstance(inner, type):
            yield from all_keys(inner, (*above, name))


def _at(path: tuple, tree: Node, model: type[BaseModel]) -> Any:
    """A block's class, _Entries of one, or None."""
    block: Any = model
    node: Node | None = tree
    for depth, part in enumerate(path):
        if isinstance(block, _Entries):
            block = block.entry
        else:
            field = block.model_fields.get(part) if block else None
            block = _inner(field.annotation) if field else None
        node = node.child(part) if node else None
        typed = next((t for p, t in _TYPED.items() if _matches(path[: depth + 1], p)), None)
        if typed and node and isinstance(node.value, dict):
            try:
                block = typed(part, node.plain())
            except ConfigError:
                return None
    return block
