"""Taps: intermediate values of a network by name, without changes to its code.

A tap is a name that the network defines (``stage1`` … ``stage5``, ``head``, ``logits``), its input
``image``, or ``module:<dotted.path>``, the last output of any submodule. With the suffix ``:pre``
it is the value before the activation that computes it. Each tap is probed once with a small image;
the resulting plan names the hooks that a forward pass needs, so that training has no other
overhead.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from segkd.errors import ConfigError
from segkd.methods.base import PRE, TapInfo
from segkd.models.tap_places import Place
from segkd.ops.mode import eval_mode

_ACTIVATIONS = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.LeakyReLU,
    nn.Mish,
    nn.PReLU,
    nn.ReLU,
    nn.SELU,
    nn.Sigmoid,
    nn.SiLU,
    nn.Softplus,
    nn.Tanh,
)
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)

Record = Callable[[str, Tensor], None]


@dataclass(frozen=True)
class TapPlan:
    """The result of probing a tap.

    Attributes:
        info: channels and stride.
        module: path of the outermost module that returns the value (for logits the innermost);
            empty if there is none.
        overwritten: a later in-place operation changes the value, so that it must be copied.
        activation: path of the activation that computes the value; None: it is not activated.
        norm: path of the normalisation right before that activation, or None.
        place: where it is taken; None: ``compute`` records it.
    """

    info: TapInfo
    module: str
    overwritten: bool
    activation: str | None
    norm: str | None
    place: Place | None = None


class Recorder:
    """Context manager that records the planned taps of one forward pass.

    Args:
        network: the network.
        plans: by tap.

    Attributes:
        values: the tapped tensors (B, C, h, w) by tap.
    """

    def __init__(self, network: nn.Module, plans: Mapping[str, TapPlan]) -> None:
        self.values: dict[str, Tensor] = {}
        self._network, self._plans = network, plans
        self._inputs: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._handles: list[RemovableHandle] = []

    def record(self, name: str, value: Tensor) -> None:
        """Stores a value (B, C, h, w) that the network computes, if it is tapped."""
        if name in self._plans:
            overwritten = self._plans[name].overwritten
            self.values[name] = value.clone() if overwritten else value
        if name + PRE in self._plans:
            self.values[name + PRE] = self._input_behind(value, self._plans[name + PRE])

    def __enter__(self) -> "Recorder":
        watched: dict[str, bool] = {}  # whether to copy the input, by path of the activation
        for tap, plan in self._plans.items():
            if tap.endswith(PRE) and plan.activation is not None:
                copy = watched.get(plan.activation, False) or plan.overwritten
                watched[plan.activation] = copy
        for path, copy in watched.items():
            self._watch(path, copy)
        places = {tap.removesuffix(PRE): plan.place for tap, plan in self._plans.items()}
        for base, place in places.items():
            if place is not None:
                self._take(base, place)
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._inputs.clear()

    def _take(self, base: str, place: Place) -> None:
        turns = itertools.count()

        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any = None) -> None:
            if next(turns) == place.turn or place.turn is None:
                self.record(base, inputs[0] if place.before else output)

        module = self._network.get_submodule(place.path)
        register = (
            module.register_forward_pre_hook if place.before else module.register_forward_hook
        )
        self._handles.append(register(hook))

    def _watch(self, path: str, copy: bool) -> None:
        activation = self._network.get_submodule(path)
        pending: list[Tensor] = []
        calls = self._inputs[path] = []

        def before(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            pending[:] = [inputs[0].clone() if copy else inputs[0]]

        def after(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
            calls.append((output, pending.pop()))

        self._handles.append(activation.register_forward_pre_hook(before))
        self._handles.append(activation.register_forward_hook(after))

    def _input_behind(self, value: Tensor, plan: TapPlan) -> Tensor:
        assert plan.activation is not None  # of every plan of a tap with ``:pre``
        calls = self._inputs[plan.activation]
        # Dropout between activation and tap returns another tensor in training: then the last call.
        return next((pre for output, pre in calls if output is value), calls[-1][1])


@dataclass(eq=False)
class Call:
    """One call of a module in a probe.

    Attributes:
        path: path of the module.
        module: the module.
        begun: number of calls that had ended when it began.
        given, given_version, given_node: its first input, if that is a tensor, with version counter
            and autograd node at that time.
        output, output_version, output_node: the same of its output.
    """

    path: str
    module: nn.Module
    begun: int = 0
    given: Tensor | None = None
    given_version: int = 0
    given_node: Node | None = None
    output: Tensor | None = None
    output_version: int = 0
    output_node: Node | None = None


@dataclass(frozen=True)
class _Value:
    """A value at the time when it was recorded, after the first ``calls`` calls of the probe."""

    tensor: Tensor
    version: int
    calls: int


@dataclass
class Probe:
    """A traced forward pass.

    Attributes:
        size: (H, W) of the image.
        calls: all calls of modules, in the order in which they ended.
        named: values that the network recorded, by name.
    """

    size: tuple[int, int]
    calls: list[Call] = field(default_factory=list)
    named: dict[str, _Value] = field(default_factory=dict)

    def record(self, name: str, value: Tensor) -> None:
        """Stores a value (1, C, h, w) that the network records. Raises ConfigError for others."""
        if not isinstance(value, Tensor):  # of foreign code
            raise ConfigError(
                f"tap '{name}' is a {type(value).__name__}; a tap must be a tensor (B, C, h, w). "
                "Name a submodule that returns one"
            )
        self.named[name] = _Value(value, value._version, len(self.calls))

    def place(self, call: Call, before: bool = False) -> Place:
        """Where the output (or, with ``before``, the input) of a call is taken in later passes."""
        turns = [other for other in self.calls if other.path == call.path]
        return Place(call.path, next(n for n, c in enumerate(turns) if c is call), before)

    def plan(self, tap: str, place: Place | None = None) -> TapPlan:
        """The plan of a checked tap.

        Args:
            tap: its name.
            place: where it is taken; None: the network records it.

        Raises:
            ConfigError: the value is not a tensor (B, C, h, w), or has none before an activation.
        """
        value = self._value(tap, place)
        makers = self._makers(value)
        activations = (c for c in makers if _is_activation(c.module) and c.given is not None)
        activation = next(activations, None)
        norm = self._norm(activation) if activation else _path_of(makers, _is_norm)
        # A stage is its container; of logits it is the last layer, not the network around it.
        module = makers[0 if tap == "logits" else -1].path if makers else ""
        tensor, version = value.tensor, value.version
        if tap.endswith(PRE):
            if activation is None or activation.given is None:
                raise ConfigError(
                    f"tap '{tap}': '{tap.removesuffix(PRE)}' is not the output of an activation "
                    "module, so it has no value before the activation. Drop ':pre', or tap a "
                    "normalisation with 'module:<dotted.path>'"
                )
            tensor, version = activation.given, activation.given_version
        info = TapInfo(tensor.shape[1], max(1, round(self.size[0] / tensor.shape[2])))
        path = activation.path if activation else None
        return TapPlan(info, module, tensor._version != version, path, norm, place)

    def _value(self, tap: str, place: Place | None) -> _Value:
        base = tap.removesuffix(PRE)
        if place is None and base not in self.named:
            raise ConfigError(
                f"tap '{tap}': a forward pass gives it no value. A submodule that is not called, "
                "such as a list of layers, has none: name one that is, e.g. an entry of the list"
            )
        value = self._at(place, tap) if place else self.named[base]
        if value is None or value.tensor.ndim != 4:
            got = "not a tensor" if value is None else f"of shape {tuple(value.tensor.shape)}"
            raise ConfigError(f"tap '{tap}' is {got}; a tap must be a tensor (B, C, h, w)")
        return value

    def _at(self, place: Place, tap: str) -> _Value | None:
        """The value at a place; None if it is not a tensor."""
        turns = [index for index, call in enumerate(self.calls) if call.path == place.path]
        if not turns:
            raise ConfigError(f"tap '{tap}': a forward pass does not run '{place.path}'")
        index = turns[-1 if place.turn is None else place.turn]
        call = self.calls[index]
        if place.before:
            version, tensor, calls = call.given_version, call.given, call.begun
        else:
            version, tensor, calls = call.output_version, call.output, index + 1
        return None if tensor is None else _Value(tensor, version, calls)

    def _makers(self, value: _Value) -> list[Call]:
        """The calls that returned exactly this value, innermost first."""
        return [
            call
            for call in self.calls[: value.calls]
            if call.output is value.tensor and call.output_version == value.version
        ]

    def _norm(self, activation: Call) -> str | None:
        """The normalisation before an activation, through the main branch of a residual sum."""
        # A fused norm-activation layer (timm) calls its activation inside its own forward.
        parent = activation.path.rpartition(".")[0]
        norms = [call for call in self.calls if _is_norm(call.module)]
        if parent in {call.path for call in norms}:
            return parent
        made_by = {call.output_node: call.path for call in norms}
        node = activation.given_node
        summands: list[Node | None]
        if node is not None and type(node).__name__.startswith("AddBackward"):
            summands = [summand for summand, _ in node.next_functions]
        else:
            summands = [node]
        return next((made_by[node] for node in summands if node in made_by), None)


def _path_of(calls: list[Call], wanted: Callable[[nn.Module], bool]) -> str | None:
    return next((call.path for call in calls if wanted(call.module)), None)


@contextmanager
def tracing(network: nn.Module, size: tuple[int, int]) -> Iterator[Probe]:
    """Prepares a network for a probe of image size ``size``, and restores its state afterwards.

    Eval mode protects batch-norm statistics; only in-place dropout is active, since it overwrites
    taps in training. Gradients are enabled: autograd nodes identify the input of an activation.
    """
    probe = Probe(size)
    handles = []
    for path, module in network.named_modules():
        if path:
            handles += _trace(probe, path, module)
    cuda = [p.device for p in network.parameters() if p.is_cuda][:1]
    try:
        with (
            eval_mode(network),
            torch.random.fork_rng(cuda),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(cuda[0].type if cuda else "cpu", enabled=False),
        ):
            for module in network.modules():
                if isinstance(module, nn.modules.dropout._DropoutNd):
                    module.training = module.inplace
            yield probe
    finally:
        for handle in handles:
            handle.remove()


def _trace(probe: Probe, path: str, module: nn.Module) -> list[RemovableHandle]:
    open_calls: list[Call] = []

    def before(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        call = Call(path, module, len(probe.calls))
        if inputs and isinstance(inputs[0], Tensor):
            call.given, call.given_version = inputs[0], inputs[0]._version
            call.given_node = inputs[0].grad_fn
        open_calls.append(call)

    def after(_: nn.Module, __: tuple[Any, ...], output: object) -> None:
        call = open_calls.pop()
        if isinstance(output, Tensor):
            call.output, call.output_version = output, output._version
            call.output_node = output.grad_fn
        probe.calls.append(call)

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


def _is_activation(module: nn.Module) -> bool:
    """Whether a module is an element-wise activation, torch's or timm's."""
    of_timm = type(module).__module__.startswith("timm.layers.activations")
    return of_timm or isinstance(module, _ACTIVATIONS)


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _NORMS)
