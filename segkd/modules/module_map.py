"""A ``ModuleDict`` whose values have a known type."""

from collections.abc import ItemsView, Mapping, ValuesView
from typing import TYPE_CHECKING, Generic, TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


class ModuleMap(nn.ModuleDict, Generic[M]):
    """``nn.ModuleDict`` for type checkers: all modules are of type ``M``."""

    if TYPE_CHECKING:

        def __init__(self, modules: Mapping[str, M]) -> None: ...

        def __getitem__(self, key: str) -> M: ...

        def items(self) -> ItemsView[str, M]: ...

        def values(self) -> ValuesView[M]: ...
