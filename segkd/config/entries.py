"""Blocks whose config class depends on a name (data, methods, losses), and the class of any key."""

import types
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from pydantic import BaseModel, ValidationError, ValidationInfo
from pydantic_core import InitErrorDetails, PydanticCustomError

from segkd import registry
from segkd.data.base import DataConfig
from segkd.data.unlabeled import unlabelled_config
from segkd.errors import ODD_VALUES, ConfigError, did_you_mean
from segkd.losses.config import TaskLossConfig
from segkd.method_config import MethodConfig
from segkd.yaml_tree import Node


def data_class(value: Mapping[str, Any]) -> type[DataConfig]:
    """The config class of the block ``data:``. Raises ConfigError on an unknown dataset."""
    name = value.get("name")
    return registry.datasets.get(name).Config if isinstance(name, str) else DataConfig


def method_class(key: str, value: Mapping[str, Any]) -> type[MethodConfig]:
    """The config class of an entry of ``methods:``. Raises ConfigError on an unknown method."""
    name = value.get("method") or key
    return registry.methods.get(name).Config if isinstance(name, str) else MethodConfig


def loss_class(key: str, value: Mapping[str, Any]) -> type[TaskLossConfig]:
    """The config class of an entry of ``task.losses``. Raises ConfigError on an unknown loss."""
    return registry.losses.get(key).Config


def typed_data(value: Any, info: ValidationInfo) -> Any:
    """The plain block ``data:`` as the config of its dataset.

    A stored config (``stored`` in the context) has been checked before; that it was trained with
    transforms that this version of albumentations lacks is no reason not to read it.
    """
    if not isinstance(value, dict) or "name" not in value:
        return value
    config = _validated(_named("name", data_class, value), value)
    _check_unlabeled(config)
    if config.augment and not (info.context or {}).get("stored"):
        _check_augment(config)
    return config


def _check_augment(config: DataConfig) -> None:
    """Each transform is made and tried, for the task of the dataset."""
    from segkd.data.augment_list import augment_problems

    lanes = registry.datasets.get(config.name).task == "lanes"
    found = augment_problems(config.augment, lanes, config.crop or config.resize)
    raise_all([problem(("augment", *one.path), one.got, one.text) for one in found])


def _check_unlabeled(config: DataConfig) -> None:
    """Keys of the dataset under ``unlabeled`` are checked by its own config."""
    try:
        unlabelled_config(config)
    except ConfigError as error:
        raise_all([problem(("unlabeled", "name"), config.unlabeled.name, str(error))])
    except ValidationError as error:
        extra, problems = config.unlabeled.model_extra, []
        known = data_class({"name": config.unlabeled.name or config.name}).model_fields
        for one in error.errors():
            key, text = one["loc"][:1], one["msg"].removeprefix("Value error, ")
            if one["type"] == "extra_forbidden":
                text = f"unknown key.{did_you_mean(str(key[0]), known)}"
            where = ("unlabeled", *key) if key and key[0] in extra else ("unlabeled",)
            problems.append(problem(where, one["input"], text))
        raise_all(problems)


def typed_entries(entries: Any, config_class: Callable[[str, dict], type[BaseModel]]) -> Any:
    """{name: plain mapping} -> {name: config of its class}; raises all problems at once."""
    if not isinstance(entries, dict):
        return entries
    typed, problems = {}, []
    for key, value in entries.items():
        if not isinstance(value, dict):
            typed[key] = value
            continue
        try:
            typed[key] = _validated(_named("method", partial(config_class, key), value), value)
        except ValidationError as error:
            problems += [
                problem((key, *one["loc"]), one["input"], one["msg"], one["type"])
                for one in error.errors()
            ]
    raise_all(problems)
    return typed


def _validated(kind: type[BaseModel], value: dict) -> BaseModel:
    """``value`` as a ``kind``; whatever else its own validators stumble over is a problem, too."""
    try:
        return kind.model_validate(value)
    except ValidationError:
        raise
    except ODD_VALUES as error:
        text = f"got values that cannot be checked ({str(error) or type(error).__name__})"
        raise_all([problem((), value, text)])
        raise


def _named(key: str, config_class: Callable[[dict], type[BaseModel]], value: dict) -> type:
    """``config_class(value)``, its ConfigError placed at ``key`` (or at the entry itself)."""
    try:
        return config_class(value)
    except ConfigError as error:
        place = (key,) if key in value else ()
        raise_all([problem(place, value.get(key), str(error), "unknown_name")])
        raise


def problem(place: tuple, got: Any, text: str, kind: str = "refused") -> InitErrorDetails:
    """A problem that pydantic reports as one of its own, at ``place``."""
    return InitErrorDetails(type=PydanticCustomError(kind, text), loc=place, input=got)


def raise_all(problems: list[InitErrorDetails]) -> None:
    """Raises the problems as one ValidationError, if there are any."""
    if problems:
        raise ValidationError.from_exception_data("config", problems)


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
