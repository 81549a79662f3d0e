"""The teachers of a run by name: frozen networks, black boxes, and ensembles of both."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkd.checkpoint import require_finite
from segkd.config.schema import TeacherConfig
from segkd.errors import ConfigError, SegKDError, did_you_mean
from segkd.methods.base import Needs, TapInfo
from segkd.models.build import build_network
from segkd.models.class_map import FLOOR, class_matrix, described, mapped, safe_log, source_classes
from segkd.models.network import Network
from segkd.structures import Outputs


@dataclass(frozen=True)
class TappedNetwork:
    """What a method may know of a network that it taps.

    Attributes:
        info: channels and stride of each tap.
        modules: the module that makes each tap.
        norm_before: see ``BuildContext``.
    """

    info: Mapping[str, TapInfo]
    modules: Mapping[str, nn.Module]
    norm_before: Callable[[str], nn.Module | None] = lambda tap: None


def tapped(network: Network, taps: Sequence[str]) -> TappedNetwork:
    """The taps of a network. Raises ConfigError if it has no such tap."""
    info = network.tap_info(taps)
    modules = {tap: network.tap_module(tap) for tap in taps}
    return TappedNetwork(info, modules, network.norm_before)


class Frozen(nn.Module):
    """In eval mode for good: ``train()`` does not reach it."""

    def train(self, mode: bool = True) -> "Frozen":
        return self


class Teacher(Frozen):
    """A frozen network that answers ``taps``, without gradient.

    Args:
        network: is put into eval mode, and its parameters no longer require gradients.
        taps: what to answer beside the logits.
        half: run under autocast to this type; None: in fp32.
        gradient: keep the autograd graph from the images on, for methods that differentiate the
            teacher's outputs by its features. Parameters stay frozen.
        class_map: (K, K') of ``class_map.class_matrix``: the network has K' classes, the outputs
            are log-probabilities of K.
    """

    def __init__(
        self,
        network: Network,
        taps: Collection[str] = (),
        *,
        half: torch.dtype | None = None,
        gradient: bool = False,
        class_map: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.training = False
        self.taps, self.half, self.gradient = tuple(sorted(taps)), half, gradient
        self.num_classes, self.divisor = network.num_classes, network.divisor
        self.about_classes = ""  # what the map covers, for the log
        self.register_buffer("class_map", class_map, persistent=False)
        if class_map is not None:
            self.num_classes = len(class_map)

    def forward(self, images: Tensor) -> Outputs:
        """Outputs for images (B, 3, H, W) uint8."""
        if images.is_cuda:
            images = images.contiguous(memory_format=torch.channels_last)
        if self.gradient:
            images = images.float().requires_grad_()
        plain = self.half is None or images.is_meta  # on which only operations are counted
        autocast = nullcontext() if plain else torch.autocast(images.device.type, self.half)
        # Not inference mode: its tensors may take no part in a training graph.
        with torch.set_grad_enabled(self.gradient), autocast:
            outputs = self.network(images, self.taps)
            if self.class_map is None:
                return outputs
            logits = mapped(outputs.logits, self.class_map)
        return replace(outputs, logits=logits, kind="log_prob")

    def _apply(self, move: Callable, *args, **kwargs) -> "Teacher":
        super()._apply(move, *args, **kwargs)
        if any(parameter.is_cuda for parameter in self.network.parameters()):
            for parameter in self.network.parameters():
                if parameter.ndim == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        return self


class BlackBox(Frozen):
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
        total = answer.sum(1, keepdim=True).clamp_min(FLOOR)
        return Outputs(safe_log(answer / total), kind="log_prob")


def average(parts: list[Outputs]) -> Outputs:
    """The mean of distributions, at the element-wise smallest (h, w), as log-probabilities.

    Existence, if all parts have it, is the logit of the mean probability.
    """
    size = [min(part.logits.shape[axis] for part in parts) for axis in (2, 3)]
    # The softmax of log-probabilities gives the probabilities back.
    shares = (part.logits.float().softmax(1) for part in parts)
    total = sum(F.adaptive_avg_pool2d(share, size) for share in shares)
    exist = None
    if all(part.exist is not None for part in parts):
        chances = torch.stack([part.exist.float().sigmoid() for part in parts])
        exist = chances.mean(0).logit(eps=1e-6)  # 1 - 1e-8 is 1 in float32
    return Outputs(safe_log(total / len(parts)), exist=exist, kind="log_prob")


class Teachers(Frozen):
    """All teachers of a run; a call answers Outputs by name.

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

    def forward(self, images: Tensor) -> dict[str, Outputs]:
        """Outputs of the used teachers for images (B, 3, H, W); each network runs once."""
        needed = self._closure(self.used)
        found = {name: self.members[name](images) for name in self.members if name in needed}
        for name, parts in self.ensembles.items():
            if name in needed:
                found[name] = average([found[part] for part in parts])
        return {name: found[name] for name in self.used}

    def alone(self, name: str) -> "Teachers":
        """Only ``name`` and what it is made of; a call answers its Outputs, as a network does."""
        needed = self._closure([name])
        members = {key: member for key, member in self.members.items() if key in needed}
        ensembles = {key: parts for key, parts in self.ensembles.items() if key in needed}
        return _Alone(members, ensembles, [name])

    def tapped(self, name: str, needs: Needs) -> TappedNetwork:
        """What ``Method.build`` may know of teacher ``name``.

        Raises:
            ConfigError: the method asks for what this teacher cannot give.
        """
        if self._has_no_features(name):
            return TappedNetwork(self._checked_log_prob(name, needs), {})
        member = self.members[name]
        found = tapped(member.network, needs.teacher)
        if member.class_map is None or "logits" not in needs.teacher:
            return found
        self._require_log_prob(name, needs, "has other classes than the data")
        logits = replace(found.info["logits"], channels=member.num_classes)
        return replace(found, info={**found.info, "logits": logits})

    def _has_no_features(self, name: str) -> bool:
        return name in self.ensembles or isinstance(self.members[name], BlackBox)

    def _checked_log_prob(self, name: str, needs: Needs) -> dict[str, TapInfo]:
        kind = "an ensemble" if name in self.ensembles else "a black box"
        features = sorted(set(needs.teacher) - {"logits"})
        if features:
            raise ConfigError(
                f"needs the teacher's {', '.join(features)}, but teacher '{name}' is {kind} and "
                "has no features. Name a single network as `teacher`, or tap logits"
            )
        self._require_log_prob(name, needs, f"is {kind}")
        info = self._logits_info(name)
        return dict.fromkeys(needs.teacher, info)

    @staticmethod
    def _require_log_prob(name: str, needs: Needs, why: str) -> None:
        if needs.teacher_gradient or not needs.accepts_log_prob:
            raise ConfigError(
                f"needs logits, but teacher '{name}' {why} and returns probabilities. Name a "
                "single network as `teacher`, or use a method on probabilities such as kd"
            )

    def _logits_info(self, name: str) -> TapInfo:
        if name in self.ensembles:
            parts = [self._logits_info(part) for part in self.ensembles[name]]
            return TapInfo(parts[0].channels, max(part.stride for part in parts))
        member = self.members[name]
        if isinstance(member, BlackBox):
            return TapInfo(member.num_classes, member.stride)
        info = member.network.tap_info(["logits"])["logits"]
        return replace(info, channels=member.num_classes)

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


def open_networks(
    configs: Mapping[str, TeacherConfig],
    networks: Mapping[str, Network | BlackBox],
    num_classes: int,
    classes: Sequence[str] = (),
) -> dict[str, Network | BlackBox]:
    """The teachers but ensembles, not yet frozen: ``networks``, and what ``configs`` says.

    Raises:
        SegKDError: what ``build_network`` refuses, naming the teacher.
    """
    opened = {}
    for name, config in configs.items():
        if name not in networks and not config.ensemble:
            opened[name] = _configured(name, config, num_classes, classes)
    return opened | dict(networks)


def build_teachers(
    configs: Mapping[str, TeacherConfig],
    taps: Mapping[str, Collection[str]],
    num_classes: int,
    *,
    networks: Mapping[str, Network | BlackBox] | None = None,
    half: torch.dtype | None = None,
    gradient: Collection[str] = (),
    classes: Sequence[str] = (),
    dataset: str = "",
) -> Teachers:
    """The configured teachers, frozen.

    Args:
        configs: the `teachers:` of a run.
        taps: by teacher, what methods tap; teachers without any are made, but not run.
        networks: the caller's own, which replace entries of ``configs`` of the same name.
        half: they run under autocast to this type; None: in fp32.
        gradient: names of those whose outputs some method differentiates.
        classes: names of the data's classes.
        dataset: its name.

    Raises:
        ConfigError: unknown or cyclic members of ensembles, or what ``build_network`` refuses.
        CheckpointError: weights that are NaN or infinite; names teacher, tensor, and file.
    """
    members: dict[str, Teacher | BlackBox] = {}
    ensembles: dict[str, list[str]] = {}
    for name in (*configs, *(name for name in networks or {} if name not in configs)):
        if name in (networks or {}):
            network = networks[name]
            if isinstance(network, nn.Module):
                require_finite(network.state_dict(), f"teachers.{name}")
        elif configs[name].ensemble:
            ensembles[name] = list(configs[name].ensemble)
            continue
        else:
            network = _configured(name, configs[name], num_classes, classes)
        class_map = _class_matrix(name, configs.get(name), classes, dataset)
        members[name] = _frozen(
            name, network, num_classes, taps.get(name, ()), half, name in gradient, class_map
        )
        if class_map is not None:
            given = source_classes(configs[name].class_map)
            members[name].about_classes = described(class_map, given, classes)
    used = [name for name, tapped in taps.items() if tapped]
    return Teachers(members, ensembles, used)


def _configured(
    name: str, config: TeacherConfig, num_classes: int, classes: Sequence[str]
) -> Network:
    try:
        if config.class_map:
            given = source_classes(config.class_map)
            return build_network(config.model(), len(given), given)
        return build_network(config.model(), num_classes, classes)
    except SegKDError as error:
        raise type(error)(f"teachers.{name}: {error}") from error


def _class_matrix(
    name: str, config: TeacherConfig | None, classes: Sequence[str], dataset: str
) -> Tensor | None:
    if config is None or config.class_map is None:
        return None
    try:
        return class_matrix(config.class_map, list(classes), dataset)
    except ConfigError as error:
        raise ConfigError(f"teachers.{name}.{error}") from error


def _frozen(
    name: str,
    network: Network | BlackBox,
    num_classes: int,
    taps: Collection[str],
    half: torch.dtype | None,
    gradient: bool,
    class_map: Tensor | None = None,
) -> Teacher | BlackBox:
    if not isinstance(network, Network | BlackBox):
        raise ConfigError(
            f"teachers.{name}: got {type(network).__name__}, expected a Network. Wrap your module: "
            "segkd.models.module.wrap(module, num_classes, taps=…)"
        )
    if class_map is None and network.num_classes != num_classes:
        raise ConfigError(
            f"teachers.{name}: it has {network.num_classes} classes, the data has {num_classes}"
        )
    if isinstance(network, BlackBox):
        return network
    return Teacher(network, taps, half=half, gradient=gradient, class_map=class_map)


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
