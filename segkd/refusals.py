"""Problems of blocks that are checked by another config class, reported like pydantic's own."""

from collections.abc import Collection, Iterator
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from segkd.errors import did_you_mean

Place = tuple[str | int, ...]


def problem(place: Place, got: Any, text: str, kind: str = "refused") -> InitErrorDetails:
    """A problem that pydantic reports like one of its own.

    Args:
        place: keys that lead to it.
        got: the value.
        text: the message.
        kind: pydantic's ``type`` of the error.
    """
    return InitErrorDetails(type=PydanticCustomError(kind, text), loc=place, input=got)


def refusal(*problems: InitErrorDetails) -> ValidationError:
    """The error that has these problems."""
    return ValidationError.from_exception_data("config", list(problems))


def raise_all(problems: list[InitErrorDetails]) -> None:
    """Raises the problems as one ValidationError, if there are any."""
    if problems:
        raise refusal(*problems)


def network_problems(
    place: Place, error: ValidationError, model: type[BaseModel]
) -> list[InitErrorDetails]:
    """The problems of a network that a method's entry describes, at ``place``."""
    found = []
    for one in error.errors():
        text, kind = one["msg"], one["type"]
        if kind == "extra_forbidden":
            text = _unknown(one["loc"][-1], model.model_fields)
            kind = "refused"
        found.append(problem((*place, *one["loc"]), one["input"], text, kind))
    return found


def dataset_problems(
    place: Place, error: ValidationError, block: BaseModel, dataset: type[BaseModel]
) -> Iterator[InitErrorDetails]:
    """The problems of a block whose further keys are keys of a dataset.

    Args:
        place: keys that lead to the block.
        error: of the dataset's config, made of the block's keys and others.
        block: the block; a problem of any other key is one of the whole block, and names the key.
        dataset: the dataset's config class.
    """
    own = {*(block.model_extra or {}), *type(block).model_fields}
    for one in error.errors():
        key, text = next(iter(one["loc"]), None), one["msg"].removeprefix("Value error, ")
        if key is not None and one["type"] == "extra_forbidden":
            text = _unknown(key, {*type(block).model_fields, *dataset.model_fields})
        if key is None or key in own:
            yield problem(place if key is None else (*place, key), one["input"], text)
        else:
            yield problem(place, one["input"], f"{key}: {text}")


def _unknown(key: str | int, known: Collection[str]) -> str:
    return f"unknown key.{did_you_mean(str(key), known)}"
