"""Entries whose config class depends on their name: data, methods, task losses."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from segkd import registry
from segkd.data.base import DataConfig
from segkd.data.unlabeled import unlabelled_config
from segkd.errors import ODD_VALUES, ConfigError, did_you_mean
from segkd.losses.base import TaskLossConfig
from segkd.methods.base import MethodConfig


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


def typed_data(value: Any) -> Any:
    """The plain block ``data:`` as the config of its dataset."""
    if not isinstance(value, dict) or "name" not in value:
        return value
    config = _validated(_named("name", data_class, value), value)
    _check_unlabeled(config)
    return config


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
