"""Taps: values inside a network, by name, without a change to its code.

A tap is a name that the network gives (``stage1`` … ``stage5``, ``head``, ``logits``) or
``module:<dotted.path>``, the last output of any submodule. With the suffix ``:pre`` it is the
value before the activation that made it. Each tap is probed once with a small image; the plan
found there says which hooks a training step needs, so that steps pay for nothing else.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from segkd.errors import ConfigError, did_you_mean
from segkd.methods.base import TapInfo

MODULE, PRE = "module:", ":pre"

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
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)

Keep = Callable[[str, Tensor], None]


@dataclass(frozen=True)
class TapPlan:
    """What a probe found out about a tap.

    Attributes:
        info: channels and stride.
        module: path of the outermost module that answers the value; "" if there is none.
        overwritten: a later in-place operation changes the value, so that it must be copied.
        activation: path of the activation that made the value (None: not an activation's).
        norm: path of the normalisation right before that activation, or None.
    """

    info: TapInfo
    module: str
    overwritten: bool
    activation: str | None
    norm: str | None


def check_tap(tap: str, named: Collection[str], network: nn.Module) -> None:
    """Raises ConfigError if ``tap`` is neither one of ``named`` nor the path of a submodule."""
    base = tap.removesuffix(PRE)
    if not base.startswith(MODULE):
        if base not in named:
            hint = did_you_mean(base, named)
            known = f" Known taps: {', '.join(named)}." if "Did" in hint else hint
            raise ConfigError(
                f"there is no tap '{tap}'.{hint if known != hint else ''}{known} Any submodule is "
                "reached by 'module:<dotted.path>'; the suffix ':pre' asks for the value before "
                "the activation"
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

    def keep(self, name: str, value: Tensor) -> None:
        """Takes what the network offers as ``name``, if that is tapped."""
        if name in self._plans:
            overwritten = self._plans[name].overwritten
            self.values[name] = value.clone() if overwritten else value
        if name + PRE in self._plans:
            self.values[name + PRE] = self._input_behind(value, self._plans[name + PRE])

    def __enter__(self) -> "Recorder":
        for tap, plan in self._plans.items():
            if tap.endswith(PRE) and plan.activation not in self._inputs:
                self._watch(plan.activation, plan.overwritten)
        for base in {tap.removesuffix(PRE) for tap in self._plans}:
            if base.startswith(MODULE):
                module = self._network.get_submodule(base.removeprefix(MODULE))
                self._handles.append(
                    module.register_forward_hook(lambda _, __, out, base=base: self.keep(base, out))
                )
        return self

    def __exit__(self, *_) -> None:
        for handle in self._handles:
            handle.remove()
        self._inputs.clear()

    def _watch(self, path: str, overwritten: bool) -> None:
        activation, calls, pending = self._network.get_submodule(path), [], []
        self._inputs[path] = calls

        def before(_, inputs: tuple) -> None:
            pending[:] = [inputs[0].clone() if overwritten else inputs[0]]

        def after(_, __, output: Tensor) -> None:
            calls.append((output, pending.pop()))

        self._handles.append(activation.register_forward_pre_hook(before))
        self._handles.append(activation.register_forward_hook(after))

    def _input_behind(self, value: Tensor, plan: TapPlan) -> Tensor:
        calls = self._inputs[plan.activation]
        # Dropout between activation and tap makes another tensor in training: then the last call.
        return next((pre for output, pre in calls if output is value), calls[-1][1])


@dataclass
class _Call:
    """One execution of a module in a probe."""

    path: str
    module: nn.Module
    given: Tensor | None = None
    given_version: int = 0
    given_node: object = None
    output: Tensor | None = None
    output_version: int = 0
    output_node: object = None


@dataclass(frozen=True)
class _Value:
    """A value as it was when it was offered: after the first ``calls`` calls of the probe."""

    tensor: Tensor | None
    version: int
    calls: int


@dataclass
class Probe:
    """A traced forward pass: every module's tensors, and the values that the network named."""

    size: tuple[int, int]
    calls: list[_Call] = field(default_factory=list)
    named: dict[str, _Value] = field(default_factory=dict)

    def keep(self, name: str, value: Tensor) -> None:
        self.named[name] = _Value(value, value._version, len(self.calls))

    def plan(self, tap: str) -> TapPlan:
        """The plan of a checked tap. Raises ConfigError if it cannot be had."""
        value = self._value(tap)
        makers = self._makers(value)
        activation = next((c for c in makers if is_activation(c.module)), None)
        norm = self._norm(activation) if activation else _path_of(makers, _is_norm)
        module = makers[-1].path if makers else ""
        tensor, version = value.tensor, value.version
        if tap.endswith(PRE):
            if activation is None:
                raise ConfigError(
                    f"tap '{tap}': '{tap.removesuffix(PRE)}' is not the output of an activation "
                    "module, so it has no value before the activation. Drop ':pre', or tap a "
                    "normalisation with 'module:<dotted.path>'"
                )
            tensor, version = activation.given, activation.given_version
        info = TapInfo(tensor.shape[1], max(1, round(self.size[0] / tensor.shape[2])))
        path = activation.path if activation else None
        return TapPlan(info, module, tensor._version != version, path, norm)

    def _value(self, tap: str) -> _Value:
        base = tap.removesuffix(PRE)
        if base.startswith(MODULE):
            value = self._output_of(base.removeprefix(MODULE), tap)
        else:
            value = self.named[base]
        if value.tensor is None or value.tensor.ndim != 4:
            got = "no tensor" if value.tensor is None else f"of shape {tuple(value.tensor.shape)}"
            raise ConfigError(f"tap '{tap}' is {got}; a tap must be a tensor (B, C, h, w)")
        return value

    def _output_of(self, path: str, tap: str) -> _Value:
        for index in reversed(range(len(self.calls))):
            call = self.calls[index]
            if call.path == path:
                return _Value(call.output, call.output_version, index + 1)
        raise ConfigError(f"tap '{tap}': a forward pass does not run '{path}'")

    def _makers(self, value: _Value) -> list[_Call]:
        """The calls that answered just this value, innermost first."""
        return [
            call
            for call in self.calls[: value.calls]
            if call.output is value.tensor and call.output_version == value.version
        ]

    def _norm(self, activation: _Call) -> str | None:
        """The normalisation before an activation, through the main branch of a residual sum."""
        # A fused norm-activation layer (timm) calls its activation inside its own forward.
        parent = activation.path.rpartition(".")[0]
        norms = [call for call in self.calls if _is_norm(call.module)]
        if parent in {call.path for call in norms}:
            return parent
        made_by = {call.output_node: call.path for call in norms}
        node = activation.given_node
        if type(node).__name__.startswith("AddBackward"):
            summands = [summand for summand, _ in node.next_functions]
        else:
            summands = [node]
        return next((made_by[node] for node in summands if node in made_by), None)


def _path_of(calls: list[_Call], wanted: Callable[[nn.Module], bool]) -> str | None:
    return next((call.path for call in calls if wanted(call.module)), None)


@contextmanager
def tracing(network: nn.Module, size: tuple[int, int]) -> Iterator[Probe]:
    """Puts ``network`` into a state to be probed, and leaves no trace in it.

    Eval mode protects batch-norm statistics; only in-place dropout stays on, as it overwrites
    taps in training. Gradients are on, because autograd nodes tell what an activation was fed.
    """
    probe = Probe(size)
    training = {module: module.training for module in network.modules()}
    handles = []
    for path, module in network.named_modules():
        if path:
            handles += _trace(probe, path, module)
    for module in training:
        module.training = isinstance(module, nn.modules.dropout._DropoutNd) and module.inplace
    cuda = [p.device for p in network.parameters() if p.is_cuda][:1]
    try:
        with (
            torch.random.fork_rng(cuda),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(cuda[0].type if cuda else "cpu", enabled=False),
        ):
            yield probe
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode


def _trace(probe: Probe, path: str, module: nn.Module) -> list:
    open_calls: list[_Call] = []

    def before(_, inputs: tuple) -> None:
        call = _Call(path, module)
        if inputs and isinstance(inputs[0], Tensor):
            call.given, call.given_version = inputs[0], inputs[0]._version
            call.given_node = inputs[0].grad_fn
        open_calls.append(call)

    def after(_, __, output: object) -> None:
        call = open_calls.pop()
        if isinstance(output, Tensor):
            call.output, call.output_version = output, output._version
            call.output_node = output.grad_fn
        probe.calls.append(call)

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


def is_activation(module: nn.Module) -> bool:
    """Whether a module is an element-wise activation, torch's or timm's."""
    of_timm = type(module).__module__.startswith("timm.layers.activations")
    return of_timm or isinstance(module, _ACTIVATIONS)


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _NORMS)
