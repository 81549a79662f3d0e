"""A traced forward pass over a small image: which module makes a tap, and what must be hooked."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from segkd.errors import ConfigError
from segkd.methods.base import PRE, TapInfo
from segkd.models.taps import Place, TapPlan

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


@dataclass(eq=False)
class Call:
    """One execution of a module in a probe; ``begun`` calls had ended when it began."""

    path: str
    module: nn.Module
    begun: int = 0
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
    calls: list[Call] = field(default_factory=list)
    named: dict[str, _Value] = field(default_factory=dict)

    def record(self, name: str, value: Tensor) -> None:
        self.named[name] = _Value(value, value._version, len(self.calls))

    def place(self, call: Call, before: bool = False) -> Place:
        """Where the output of a call is taken in later passes, or what it was given."""
        turns = [other for other in self.calls if other.path == call.path]
        return Place(call.path, next(n for n, c in enumerate(turns) if c is call), before)

    def plan(self, tap: str, place: Place | None = None) -> TapPlan:
        """The plan of a checked tap, taken at ``place`` if the network does not offer it.

        Raises:
            ConfigError: it cannot be had.
        """
        value = self._value(tap, place)
        makers = self._makers(value)
        activations = (c for c in makers if _is_activation(c.module) and c.given is not None)
        activation = next(activations, None)
        norm = self._norm(activation) if activation else _path_of(makers, _is_norm)
        # A stage is its container; logits are the last layer, not the network around it.
        module = makers[0 if tap == "logits" else -1].path if makers else ""
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
        return TapPlan(info, module, tensor._version != version, path, norm, place)

    def _value(self, tap: str, place: Place | None) -> _Value:
        value = self._at(place, tap) if place else self.named[tap.removesuffix(PRE)]
        if value.tensor is None or value.tensor.ndim != 4:
            got = "no tensor" if value.tensor is None else f"of shape {tuple(value.tensor.shape)}"
            raise ConfigError(f"tap '{tap}' is {got}; a tap must be a tensor (B, C, h, w)")
        return value

    def _at(self, place: Place, tap: str) -> _Value:
        turns = [index for index, call in enumerate(self.calls) if call.path == place.path]
        if not turns:
            raise ConfigError(f"tap '{tap}': a forward pass does not run '{place.path}'")
        index = turns[-1 if place.turn is None else place.turn]
        call = self.calls[index]
        if place.before:
            return _Value(call.given, call.given_version, call.begun)
        return _Value(call.output, call.output_version, index + 1)

    def _makers(self, value: _Value) -> list[Call]:
        """The calls that answered just this value, innermost first."""
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
        if type(node).__name__.startswith("AddBackward"):
            summands = [summand for summand, _ in node.next_functions]
        else:
            summands = [node]
        return next((made_by[node] for node in summands if node in made_by), None)


def _path_of(calls: list[Call], wanted: Callable[[nn.Module], bool]) -> str | None:
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
    open_calls: list[Call] = []

    def before(_, inputs: tuple) -> None:
        call = Call(path, module, len(probe.calls))
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


def _is_activation(module: nn.Module) -> bool:
    """Whether a module is an element-wise activation, torch's or timm's."""
    of_timm = type(module).__module__.startswith("timm.layers.activations")
    return of_timm or isinstance(module, _ACTIVATIONS)


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _NORMS)
