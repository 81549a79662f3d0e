"""Blocks whose config class depends on a name (data, methods, losses), and the class of any key."""

import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel, GetCoreSchemaHandler, ValidationError, ValidationInfo
from pydantic_core import CoreSchema, InitErrorDetails, core_schema

from segkd import registry
from segkd.data.base import DataConfig
from segkd.data.unlabeled import unlabelled_config
from segkd.errors import ODD_VALUES, ConfigError
from segkd.losses.config import TaskLossConfig
from segkd.method_config import MethodConfig
from segkd.refusals import dataset_problems, problem, raise_all, refusal
from segkd.yaml_tree import KeyPath, Node

Config = TypeVar("Config", bound=BaseModel)


def data_class(value: Mapping[str, Any]) -> type[DataConfig]:
    """The config class of the block ``data:``.

    Raises:
        ConfigError: unknown dataset.
    """
    name = value.get("name")
    return registry.datasets.get(name).Config if isinstance(name, str) else DataConfig


def method_class(key: str, value: Mapping[str, Any]) -> type[MethodConfig]:
    """The config class of an entry of ``methods:``.

    Raises:
        ConfigError: unknown method.
    """
    name = value.get("method") or key
    return registry.methods.get(name).Config if isinstance(name, str) else MethodConfig


def loss_class(key: str, value: Mapping[str, Any]) -> type[TaskLossConfig]:
    """The config class of an entry of ``task.losses``.

    Raises:
        ConfigError: unknown loss.
    """
    return registry.losses.get(key).Config


@dataclass(frozen=True)
class DataByName:
    """Marks a field that is validated as the ``Config`` of the dataset that it names."""

    def class_of(self, key: str, value: Mapping[str, Any]) -> type[DataConfig]:
        """The config class of the block; raises ConfigError on an unknown dataset."""
        return data_class(value)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.with_info_before_validator_function(self._typed, handler(source))

    def _typed(self, value: Any, info: ValidationInfo) -> Any:
        """The plain block as the config of its dataset.

        A stored config (``stored`` in the context) was checked when it was written: it can be
        read even if this version of albumentations lacks one of its transforms.
        """
        if not isinstance(value, dict) or "name" not in value:
            return value
        config = _validated(_named("name", data_class, value), value, info.context)
        _check_unlabeled(config)
        if config.augment and not (info.context or {}).get("stored"):
            _check_augment(config)
        return config


@dataclass(frozen=True)
class EntriesByName:
    """Marks a mapping whose entries are validated as the class that ``class_of`` returns.

    Attributes:
        class_of: config class of an entry, by its key and plain value; raises ConfigError.
    """

    class_of: Callable[[str, Mapping[str, Any]], type[BaseModel]]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._typed, handler(source))

    def _typed(self, entries: Any) -> Any:
        """{name: plain mapping} -> {name: config of its class}; raises all problems at once."""
        if not isinstance(entries, dict):
            return entries
        typed: dict[str, Any] = {}
        problems: list[InitErrorDetails] = []
        for key, value in entries.items():
            if not isinstance(value, dict):
                typed[key] = value
                continue
            try:
                kind = _named("method", partial(self.class_of, key), value)
                typed[key] = _validated(kind, value)
            except ValidationError as error:
                problems += [
                    problem((key, *one["loc"]), one["input"], one["msg"], one["type"])
                    for one in error.errors()
                ]
        raise_all(problems)
        return typed


def _check_augment(config: DataConfig) -> None:
    """Constructs each transform and applies it, for the task of the dataset."""
    from segkd.data.augment_list import augment_problems

    lanes = registry.datasets.get(config.name).task == "lanes"
    found = augment_problems(config.augment, lanes, config.crop or config.resize)
    raise_all([problem(("augment", *one.path), one.got, one.text) for one in found])


def _check_unlabeled(config: DataConfig) -> None:
    """Checks keys of the dataset under ``unlabeled`` by its own config."""
    block = config.unlabeled
    if block is None:
        return
    try:
        unlabelled_config(config)
    except ConfigError as error:
        raise refusal(problem(("unlabeled", "name"), block.name, str(error))) from None
    except ValidationError as error:
        kind = data_class({"name": block.name or config.name})
        raise refusal(*dataset_problems(("unlabeled",), error, block, kind)) from None


def _validated(kind: type[Config], value: Mapping[str, Any], context: Any = None) -> Config:
    """``value`` as a ``kind``; any other exception of its validators becomes a problem, too."""
    try:
        return kind.model_validate(value, context=context)
    except ValidationError:
        raise
    except ODD_VALUES as error:
        text = f"got values that cannot be checked ({str(error) or type(error).__name__})"
        raise refusal(problem((), value, text)) from error


def _named(
    key: str, class_of: Callable[[Mapping[str, Any]], type[Config]], value: Mapping[str, Any]
) -> type[Config]:
    """``class_of(value)``; its ConfigError is reported at ``key``, or else at the entry."""
    try:
        return class_of(value)
    except ConfigError as error:
        place = (key,) if key in value else ()
        raise refusal(problem(place, value.get(key), str(error), "unknown_name")) from error


@dataclass(frozen=True)
class _Entries:
    """Stands for ``dict[str, Block]``."""

    entry: type[BaseModel]
    by_name: EntriesByName | None = None


def block_at(path: KeyPath, tree: Node, model: type[BaseModel]) -> type[BaseModel] | None:
    """The class of the mapping at ``path`` of a config of ``model``; None if there is none."""
    block = _at(path, tree, model)
    return None if isinstance(block, _Entries) else block


def resets(path: KeyPath, tree: Node, model: type[BaseModel]) -> bool:
    """Whether ``null`` at ``path`` is not a value of the key, but removes the key or entry."""
    parent = _at(path[:-1], tree, model)
    if isinstance(parent, _Entries):
        return True
    field = parent.model_fields.get(str(path[-1])) if parent else None
    return field is not None and type(None) not in typing.get_args(field.annotation)


def all_keys(block: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of the keys of all blocks that always exist, the shallow ones first."""
    yield from ((*above, name) for name in block.model_fields)
    for name, field in block.model_fields.items():
        inner = _inner(field.annotation)
        if inner and not isinstance(inner, _Entries):
            yield from all_keys(inner, (*above, name))


def _inner(annotation: Any) -> type[BaseModel] | _Entries | None:
    """The block inside an annotation: Block, Block | None, dict[str, Block]; None if none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is dict:
        entry = _inner(args[1])
        return _Entries(entry) if isinstance(entry, type) else None
    if origin in (typing.Union, types.UnionType, typing.Annotated):
        return next((block for block in map(_inner, args) if block), None)
    return None


def _field(
    block: type[BaseModel] | None, key: str
) -> tuple[type[BaseModel] | _Entries | None, DataByName | None]:
    """What is inside a field, and its mark if it is a block that a name determines."""
    field = block.model_fields.get(key) if block else None
    if field is None:
        return None, None
    inner, marks = _inner(field.annotation), field.metadata
    if isinstance(inner, _Entries):
        by_name = next((mark for mark in marks if isinstance(mark, EntriesByName)), None)
        return _Entries(inner.entry, by_name), None
    return inner, next((mark for mark in marks if isinstance(mark, DataByName)), None)


def _at(path: KeyPath, tree: Node, model: type[BaseModel]) -> type[BaseModel] | _Entries | None:
    """The class of a block, or the entries of a mapping of blocks; None for anything else."""
    block: type[BaseModel] | _Entries | None = model
    node: Node | None = tree
    for part in path:
        mark: DataByName | EntriesByName | None
        if isinstance(block, _Entries):
            mark, block = block.by_name, block.entry
        else:
            block, mark = _field(block, str(part))
        node = node.child(part) if node else None
        if mark and node and isinstance(node.value, dict):
            try:
                block = mark.class_of(str(part), node.plain())
            except ConfigError:
                return None
    return block
