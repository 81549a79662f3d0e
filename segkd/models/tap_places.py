"""Where taps are taken that a network does not record itself; names are checked."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from torch import nn

from segkd.errors import ConfigError, did_you_mean
from segkd.methods.base import PRE

MODULE = "module:"


@dataclass(frozen=True)
class Place:
    """Where a value is taken that ``Network.compute`` does not record.

    Attributes:
        path: path of the submodule in the network.
        turn: index of its call in a forward pass; None: the last.
        before: its input instead of its output.
    """

    path: str
    turn: int | None = None
    before: bool = False


def check_tap(tap: str, named: Collection[str], network: nn.Module) -> None:
    """Raises ConfigError if ``tap`` is neither one of ``named`` nor the path of a submodule."""
    base = tap.removesuffix(PRE)
    if not base.startswith(MODULE):
        if base not in named:
            hint = did_you_mean(base, named)
            known = f" Taps: {', '.join(named)}." if hint.startswith(" Did") else ""
            raise ConfigError(
                f"there is no tap '{tap}'.{hint}{known} Any submodule can be tapped by "
                "'module:<dotted.path>'; the suffix ':pre' means the value before the activation"
            )
        return
    parent, name = network, ""
    for step in base.removeprefix(MODULE).split("."):
        # Not `named_children`, which has each module once: another one may be of two names.
        children = {key: child for key, child in parent._modules.items() if child is not None}
        if step not in children:
            raise ConfigError(
                f"tap '{tap}': '{name or 'the network'}' has no submodule '{step}'."
                f"{did_you_mean(step, children)}"
            )
        parent, name = children[step], f"{name}.{step}".removeprefix(".")


def located(tap: str, network: nn.Module, root_of: Callable[[str], str]) -> Place | None:
    """Where a ``module:`` tap is taken; None for other taps.

    Args:
        tap: its name.
        network: whose submodule it is.
        root_of: see ``Network.tap_root``.

    Raises:
        ConfigError: there is no such submodule.
    """
    base = tap.removesuffix(PRE)
    if not base.startswith(MODULE):
        return None
    path = base.removeprefix(MODULE)
    root = network.get_submodule(root_of(path))
    check_tap(tap, (), root)
    module = root.get_submodule(path)
    # One module may have several paths; a probe knows the first.
    return Place(next(name for name, other in network.named_modules() if other is module))
