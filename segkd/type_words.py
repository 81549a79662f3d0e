"""Types of keys of a configuration in the words of YAML, for ``segkd explain NAME --json``."""

import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def type_words(annotation: Any, marks: Iterable[Any] = ()) -> str:
    """A type as a reader of configs writes its values.

    Alternatives are joined by `` | ``, words by ``|``; a number has its bounds behind it, a block
    is named by its keys: ``float > 0 | null``, ``none|linear``, ``{auto, every}``.

    Args:
        annotation: of a key.
        marks: its metadata; bounds of numbers are read, the rest is passed over.
    """
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_words(inner[0], (*inner[1:], *marks))
    if origin is typing.Literal:
        return "|".join(map(str, inner))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(type_words(one, marks) for one in inner)
    if inner:
        parts = ", ".join("..." if one is ... else type_words(one) for one in inner)
        return f"{getattr(origin, '__name__', origin)}[{parts}]"
    if annotation is type(None):
        return "null"
    if annotation in (int, float):
        return " ".join([annotation.__name__, ", ".join(_bounds(marks))]).rstrip()
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "{" + ", ".join(annotation.model_fields) + "}"
    return "any" if annotation is Any else getattr(annotation, "__name__", str(annotation))


def _bounds(marks: Iterable[Any]) -> Iterator[str]:
    for mark in marks:
        if isinstance(mark, FieldInfo):
            yield from _bounds(mark.metadata)
        for name, sign in _BOUNDS.items():
            bound = getattr(mark, name, None)
            if bound is not None:
                yield f"{sign} {bound:g}"
