"""Taps: values inside a network, by name, without a change to its code.

A tap is a name that the network gives (``stage1`` … ``stage5``, ``head``, ``logits``) or
``module:<dotted.path>``, the last output of any submodule. With the suffix ``:pre`` it is the
value before the activation that made it. Each tap is probed once with a small image; the plan
found there says which hooks a training step needs, so that steps pay for nothing else.
"""

import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from segkd.errors import ConfigError, did_you_mean
from segkd.methods.base import PRE, TapInfo

MODULE = "module:"

Record = Callable[[str, Tensor], None]


@dataclass(frozen=True)
class Place:
    """Where a value is taken that the network does not offer by itself.

    Attributes:
        path: of the submodule, from the network.
        turn: which of its calls in a forward pass; None: the last.
        before: what goes into it, not what it answers.
    """

    path: str
    turn: int | None = None
    before: bool = False


@dataclass(frozen=True)
class TapPlan:
    """What a probe found out about a tap.

    Attributes:
        info: channels and stride.
        module: path of the outermost module that answers the value (of logits the innermost);
            "" if there is none.
        overwritten: a later in-place operation changes the value, so that it must be copied.
        activation: path of the activation that made the value (None: not an activation's).
        norm: path of the normalisation right before that activation, or None.
        place: where it is taken; None: ``compute`` offers it.
    """

    info: TapInfo
    module: str
    overwritten: bool
    activation: str | None
    norm: str | None
    place: Place | None = None


def check_tap(tap: str, named: Collection[str], network: nn.Module) -> None:
    """Raises ConfigError if ``tap`` is neither one of ``named`` nor the path of a submodule."""
    base = tap.removesuffix(PRE)
    if not base.startswith(MODULE):
        if base not in named:
            hint = did_you_mean(base, named)
            known = f" Taps: {', '.join(named)}." if hint.startswith(" Did") else ""
            raise ConfigError(
                f"there is no tap '{tap}'.{hint}{known} Any submodule is reached by "
                "'module:<dotted.path>'; the suffix ':pre' asks for the value before the activation"
            )
        return
    parent, name = network, ""
    for step in base.removeprefix(MODULE).split("."):
        children = dict(parent.named_children())
        if step not in children:
            raise ConfigError(
                f"tap '{tap}': '{name or 'the network'}' has no submodule '{step}'."
                f"{did_you_mean(step, children)}"
            )
        parent, name = children[step], f"{name}.{step}".removeprefix(".")


class Recorder:
    """Keeps the planned taps of one forward pass in ``values``; use it as a context manager."""

    def __init__(self, network: nn.Module, plans: Mapping[str, TapPlan]) -> None:
        self.values: dict[str, Tensor] = {}
        self._network, self._plans = network, plans
        self._inputs: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._handles: list = []

    def record(self, name: str, value: Tensor) -> None:
        """Takes what the network offers as ``name``, if that is tapped."""
        if name in self._plans:
            overwritten = self._plans[name].overwritten
            self.values[name] = value.clone() if overwritten else value
        if name + PRE in self._plans:
            self.values[name + PRE] = self._input_behind(value, self._plans[name + PRE])

    def __enter__(self) -> "Recorder":
        before = [plan for tap, plan in self._plans.items() if tap.endswith(PRE)]
        copied = {plan.activation for plan in before if plan.overwritten}
        for path in {plan.activation for plan in before}:
            self._watch(path, path in copied)
        places = {tap.removesuffix(PRE): plan.place for tap, plan in self._plans.items()}
        for base, place in places.items():
            if place is not None:
                self._take(base, place)
        return self

    def __exit__(self, *_) -> None:
        for handle in self._handles:
            handle.remove()
        self._inputs.clear()

    def _take(self, base: str, place: Place) -> None:
        turns = itertools.count()

        def hook(_, inputs: tuple, output: Tensor | None = None) -> None:
            if next(turns) == place.turn or place.turn is None:
                self.record(base, inputs[0] if place.before else output)

        module = self._network.get_submodule(place.path)
        register = (
            module.register_forward_pre_hook if place.before else module.register_forward_hook
        )
        self._handles.append(register(hook))

    def _watch(self, path: str, copy: bool) -> None:
        activation, calls, pending = self._network.get_submodule(path), [], []
        self._inputs[path] = calls

        def before(_, inputs: tuple) -> None:
            pending[:] = [inputs[0].clone() if copy else inputs[0]]

        def after(_, __, output: Tensor) -> None:
            calls.append((output, pending.pop()))

        self._handles.append(activation.register_forward_pre_hook(before))
        self._handles.append(activation.register_forward_hook(after))

    def _input_behind(self, value: Tensor, plan: TapPlan) -> Tensor:
        calls = self._inputs[plan.activation]
        # Dropout between activation and tap makes another tensor in training: then the last call.
        return next((pre for output, pre in calls if output is value), calls[-1][1])
