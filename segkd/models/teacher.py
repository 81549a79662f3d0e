"""Teachers: frozen networks, ensembles of them, and black boxes that answer probabilities."""

import math
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkd.config.schema import TeacherConfig
from segkd.errors import ConfigError, SegKDError, did_you_mean
from segkd.methods.base import Needs, Spec, TapInfo
from segkd.models.build import build_network
from segkd.models.network import Network
from segkd.structures import Outputs

_FLOOR = 1e-8  # of probabilities, before the logarithm


class _Frozen(nn.Module):
    """In eval mode for good: ``train()`` does not reach it."""

    def train(self, mode: bool = True) -> "_Frozen":
        return self


class Teacher(_Frozen):
    """A frozen network that answers ``taps``, without gradient.

    Args:
        network: is put into eval mode, and its parameters no longer require gradients.
        taps: what to answer beside the logits.
        bf16: run under bf16 autocast.
        gradient: keep the autograd graph from the images on, for methods that differentiate the
            teacher's outputs by its features. Parameters stay frozen.
    """

    def __init__(
        self,
        network: Network,
        taps: Collection[str] = (),
        *,
        bf16: bool = False,
        gradient: bool = False,
    ) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.training = False
        self.taps, self.bf16, self.gradient = tuple(sorted(taps)), bf16, gradient
        self.num_classes, self.divisor = network.num_classes, network.divisor

    def forward(self, images: Tensor) -> Outputs:
        """Outputs for images (B, 3, H, W) uint8."""
        if images.is_cuda:
            images = images.contiguous(memory_format=torch.channels_last)
        if self.gradient:
            images = images.float().requires_grad_()
        half = torch.autocast(images.device.type, torch.bfloat16) if self.bf16 else nullcontext()
        # Not inference mode: its tensors may take no part in a training graph.
        with torch.set_grad_enabled(self.gradient), half:
            return self.network(images, self.taps)

    def _apply(self, move: Callable, *args, **kwargs) -> "Teacher":
        super()._apply(move, *args, **kwargs)
        if any(parameter.is_cuda for parameter in self.network.parameters()):
            for parameter in self.network.parameters():
                if parameter.ndim == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        return self


class BlackBox(_Frozen):
    """A teacher of which only probabilities are known, e.g. a remote service.

    Args:
        answer: takes images (B, 3, H, W) uint8, returns probabilities (B, K, h, w).
        stride: H / h.
    """

    def __init__(self, answer: Callable[[Tensor], Tensor], num_classes: int, stride: int = 1):
        super().__init__()
        self.training = False
        self.answer, self.num_classes, self.stride, self.divisor = answer, num_classes, stride, 1

    @torch.no_grad()
    def forward(self, images: Tensor) -> Outputs:
        """Outputs with ``kind="log_prob"``. Raises SegKDError if the answer is no distribution."""
        answer = self.answer(images).float()
        if answer.ndim != 4 or answer.shape[1] != self.num_classes or answer.min() < 0:
            raise SegKDError(
                f"a black-box teacher answered shape {tuple(answer.shape)}, smallest value "
                f"{float(answer.min()):.3g}; expected probabilities (B, {self.num_classes}, h, w)"
            )
        total = answer.sum(1, keepdim=True).clamp_min(_FLOOR)
        return Outputs(_safe_log(answer / total), kind="log_prob")


class Teachers(_Frozen):
    """All teachers of a run by name: networks, black boxes, and ensembles of both.

    Args:
        members: the teachers that compute something.
        ensembles: by name, the names of their members (ensembles among them, without a cycle).
        used: names that a method listens to; the others answer only as members.
    """

    def __init__(
        self,
        members: Mapping[str, Teacher | BlackBox],
        ensembles: Mapping[str, list[str]],
        used: Collection[str],
    ) -> None:
        super().__init__()
        self.training = False
        self.members = nn.ModuleDict(members)
        self.ensembles = _in_order(ensembles, members)
        self.used = [name for name in (*members, *self.ensembles) if name in used]
        self.names = [*members, *ensembles]

    def forward(self, images: Tensor, names: Collection[str] | None = None) -> dict[str, Outputs]:
        """Outputs of the used teachers (or of ``names``); each network runs once."""
        wanted = list(self.used if names is None else names)
        needed = self._closure(wanted)
        found = {name: self.members[name](images) for name in self.members if name in needed}
        for name, parts in self.ensembles.items():
            if name in needed:
                found[name] = average([found[part] for part in parts])
        return {name: found[name] for name in wanted}

    def alone(self, name: str) -> "Teachers":
        """Only ``name`` and what it is made of; a call answers its Outputs, as a network does."""
        needed = self._closure([name])
        members = {key: member for key, member in self.members.items() if key in needed}
        ensembles = {key: parts for key, parts in self.ensembles.items() if key in needed}
        return _Alone(members, ensembles, [name])

    def extend_spec(self, spec: Spec, name: str, needs: Needs) -> Spec:
        """``spec`` with what ``build`` may know of teacher ``name``.

        Raises:
            ConfigError: the method asks for what this teacher cannot give.
        """
        if self._answers_log_prob(name):
            return replace(spec, teacher=self._checked_log_prob(name, needs))
        network = self.members[name].network
        return replace(
            spec,
            teacher=network.tap_info(needs.teacher),
            teacher_modules={tap: network.tap_module(tap) for tap in needs.teacher},
            norm_before=network.norm_before,
        )

    def _answers_log_prob(self, name: str) -> bool:
        return name in self.ensembles or isinstance(self.members[name], BlackBox)

    def _checked_log_prob(self, name: str, needs: Needs) -> dict[str, TapInfo]:
        kind = "an ensemble" if name in self.ensembles else "a black box"
        features = sorted(set(needs.teacher) - {"logits"})
        if features:
            raise ConfigError(
                f"needs the teacher's {', '.join(features)}, but teacher '{name}' is {kind} and "
                "has no features. Name a single network as `teacher`, or tap logits"
            )
        if not needs.accepts_log_prob:
            raise ConfigError(
                f"needs logits, but teacher '{name}' is {kind} and answers probabilities. Name a "
                "single network as `teacher`, or use a method on probabilities such as kd"
            )
        info = self._logits_info(name)
        return dict.fromkeys(needs.teacher, info)

    def _logits_info(self, name: str) -> TapInfo:
        if name in self.ensembles:
            parts = [self._logits_info(part) for part in self.ensembles[name]]
            return TapInfo(parts[0].channels, max(part.stride for part in parts))
        member = self.members[name]
        if isinstance(member, BlackBox):
            return TapInfo(member.num_classes, member.stride)
        return member.network.tap_info(["logits"])["logits"]

    def _closure(self, names: Collection[str]) -> set[str]:
        """``names`` and all that they are made of."""
        needed = set(names)
        for name in reversed(self.ensembles):
            if name in needed:
                needed.update(self.ensembles[name])
        return needed


class _Alone(Teachers):
    """One teacher that is called like a network."""

    @property
    def divisor(self) -> int:
        return math.lcm(*(member.divisor for member in self.members.values()))

    def forward(self, images: Tensor) -> Outputs:
        return super().forward(images)[self.used[0]]


def build_teachers(
    configs: Mapping[str, TeacherConfig],
    taps: Mapping[str, Collection[str]],
    num_classes: int,
    *,
    networks: Mapping[str, Network | BlackBox] | None = None,
    bf16: bool = False,
    gradient: Collection[str] = (),
) -> Teachers:
    """The configured teachers, frozen.

    Args:
        configs: the `teachers:` of a run.
        taps: by teacher, what methods tap; teachers without any are made, but not run.
        networks: the caller's own, which replace entries of ``configs`` of the same name.
        gradient: names of those whose outputs some method differentiates.

    Raises:
        ConfigError: unknown or cyclic members of ensembles, or what ``build_network`` refuses.
    """
    members: dict[str, Teacher | BlackBox] = {}
    ensembles: dict[str, list[str]] = {}
    for name in (*configs, *(name for name in networks or {} if name not in configs)):
        if name in (networks or {}):
            network = networks[name]
        elif configs[name].ensemble:
            ensembles[name] = list(configs[name].ensemble)
            continue
        else:
            network = _configured(name, configs[name], num_classes)
        members[name] = _frozen(
            name, network, num_classes, taps.get(name, ()), bf16, name in gradient
        )
    used = [name for name, tapped in taps.items() if tapped]
    return Teachers(members, ensembles, used)


def average(parts: list[Outputs]) -> Outputs:
    """The mean of distributions, at the element-wise smallest (h, w), as log-probabilities."""
    size = [min(part.logits.shape[axis] for part in parts) for axis in (2, 3)]
    total = sum(F.adaptive_avg_pool2d(_probabilities(part), size) for part in parts)
    return Outputs(_safe_log(total / len(parts)), kind="log_prob")


def _probabilities(outputs: Outputs) -> Tensor:
    values = outputs.logits.float()
    return values.exp() if outputs.kind == "log_prob" else values.softmax(1)


def _safe_log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp_min(_FLOOR).log()


def _configured(name: str, config: TeacherConfig, num_classes: int) -> Network:
    try:
        return build_network(config.model(), num_classes)
    except SegKDError as error:
        raise type(error)(f"teachers.{name}: {error}") from error


def _frozen(
    name: str,
    network: Network | BlackBox,
    num_classes: int,
    taps: Collection[str],
    bf16: bool,
    gradient: bool,
) -> Teacher | BlackBox:
    if not isinstance(network, Network | BlackBox):
        raise ConfigError(
            f"teachers.{name}: got {type(network).__name__}, expected a Network. Wrap your module: "
            "segkd.models.module.wrap(module, num_classes, taps=…)"
        )
    if network.num_classes != num_classes:
        raise ConfigError(
            f"teachers.{name}: it has {network.num_classes} classes, the data has {num_classes}"
        )
    if isinstance(network, BlackBox):
        return network
    return Teacher(network, taps, bf16=bf16, gradient=gradient)


def _in_order(ensembles: Mapping[str, list[str]], members: Collection[str]) -> dict[str, list[str]]:
    """The ensembles such that each comes after those that it is made of."""
    ordered: dict[str, list[str]] = {}
    for name, parts in ensembles.items():
        for part in parts:
            if part not in members and part not in ensembles:
                hint = did_you_mean(part, [*members, *ensembles])
                raise ConfigError(f"teachers.{name}.ensemble: there is no teacher '{part}'.{hint}")
    while len(ordered) < len(ensembles):
        ready = [
            name
            for name, parts in ensembles.items()
            if name not in ordered and all(p in members or p in ordered for p in parts)
        ]
        if not ready:
            stuck = sorted(ensembles.keys() - ordered.keys())
            raise ConfigError(f"teachers: the ensembles {', '.join(stuck)} contain each other")
        ordered |= {name: ensembles[name] for name in ready}
    return ordered
