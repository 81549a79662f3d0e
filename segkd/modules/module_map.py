"""A ``ModuleDict`` whose values have a known type."""

from collections.abc import Collection, ItemsView, Iterable, Mapping, ValuesView
from typing import TYPE_CHECKING, Generic, TypeVar

from torch import nn

from segkd.errors import ConfigError

M = TypeVar("M", bound=nn.Module)


class ModuleMap(nn.ModuleDict, Generic[M]):
    """``nn.ModuleDict`` for type checkers: all modules are of type ``M``."""

    if TYPE_CHECKING:

        def __init__(self, modules: Mapping[str, M]) -> None: ...

        def __getitem__(self, key: str) -> M: ...

        def items(self) -> ItemsView[str, M]: ...

        def values(self) -> ValuesView[M]: ...


def is_taken(name: str) -> bool:
    """Whether torch's modules have an attribute of this name, so that no part can have it."""
    return hasattr(nn.ModuleDict(), name)


def require_names(block: str, names: Iterable[str], reserved: Collection[str] = ()) -> None:
    """Checks the names of entries that become parts of a ``ModuleMap``.

    Args:
        block: that has the entries, for the message.
        names: of the entries.
        reserved: names that something else has.

    Raises:
        ConfigError: a name that cannot be used.
    """
    for name in names:
        if "/" in name or "." in name:
            raise ConfigError(f"{block}.{name}: the name of an entry may not contain '/' or '.'")
        if name in reserved or not name or is_taken(name):
            raise ConfigError(f"{block}.{name}: this name is taken, choose another one")
