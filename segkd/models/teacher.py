"""The teachers of a run: frozen networks, black boxes, and ensembles of both."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Self

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
from segkd.modules.module_map import ModuleMap
from segkd.structures import Outputs


@dataclass(frozen=True)
class TappedNetwork:
    """Facts about the tapped values of a network, for ``Method.build``.

    Attributes:
        info: channels and stride by tap.
        modules: the module that returns each tap.
        norm_before: see ``BuildContext``.
    """

    info: Mapping[str, TapInfo]
    modules: Mapping[str, nn.Module]
    norm_before: Callable[[str], nn.Module | None] = lambda tap: None


def tapped(network: Network, taps: Sequence[str]) -> TappedNetwork:
    """The facts about some taps of a network. Raises ConfigError for an unknown tap."""
    info = network.tap_info(taps)
    modules = {tap: network.tap_module(tap) for tap in taps}
    return TappedNetwork(info, modules, network.norm_before)


class Frozen(nn.Module):
    """A module that stays in eval mode: ``train()`` has no effect."""

    def train(self, mode: bool = True) -> Self:
        return self


class Teacher(Frozen):
    """A frozen network that returns ``taps``, without gradient.

    Args:
        network: is set to eval mode, and its parameters no longer require gradients.
        taps: values to return besides the logits.
        half: dtype of autocast; None: fp32.
        gradient: keep the autograd graph from the images on, for methods that differentiate the
            teacher's outputs with respect to its features. Parameters stay frozen.
        class_map: (K, K') of ``class_map.class_matrix``: the network has K' classes, and the
            outputs are log-probabilities of K classes.

    Attributes:
        num_classes: K.
        about_classes: text about the class map, for the log; empty without one.
    """

    class_map: Tensor | None

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
        self.taps, self.dtype, self.gradient = tuple(sorted(taps)), half, gradient
        self.num_classes, self.divisor = network.num_classes, network.divisor
        self.about_classes = ""
        self.register_buffer("class_map", class_map, persistent=False)
        if class_map is not None:
            self.num_classes = len(class_map)

    def forward(self, images: Tensor) -> Outputs:
        """Outputs for images (B, 3, H, W) uint8."""
        if images.is_cuda:
            images = images.contiguous(memory_format=torch.channels_last)
        if self.gradient:
            images = images.float().requires_grad_()
        plain = self.dtype is None or images.is_meta  # on meta, only operations are counted
        autocast = nullcontext() if plain else torch.autocast(images.device.type, self.dtype)
        # Not inference mode: its tensors cannot be part of a training graph.
        with torch.set_grad_enabled(self.gradient), autocast:
            outputs = self.network(images, self.taps)
            if self.class_map is None:
                return outputs
            logits = mapped(outputs.logits, self.class_map)
        return replace(outputs, logits=logits, kind="log_prob")

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if any(parameter.is_cuda for parameter in self.network.parameters()):
            for parameter in self.network.parameters():
                if parameter.ndim == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        return self


class BlackBox(Frozen):
    """A teacher that only returns probabilities, e.g. a remote service.

    Args:
        answer: takes images (B, 3, H, W) uint8, returns probabilities (B, K, h, w).
        num_classes: K.
        stride: H / h.
    """

    def __init__(
        self, answer: Callable[[Tensor], Tensor], num_classes: int, stride: int = 1
    ) -> None:
        super().__init__()
        self.training = False
        self.answer, self.num_classes, self.stride, self.divisor = answer, num_classes, stride, 1

    @torch.no_grad()
    def forward(self, images: Tensor) -> Outputs:
        """Outputs with ``kind="log_prob"`` for images (B, 3, H, W) uint8.

        Raises:
            SegKDError: ``answer`` does not return probabilities.
        """
        found = self.answer(images).float()
        if found.ndim != 4 or found.shape[1] != self.num_classes or found.min() < 0:
            raise SegKDError(
                f"a black-box teacher returned shape {tuple(found.shape)}, smallest value "
                f"{float(found.min()):.3g}; expected probabilities (B, {self.num_classes}, h, w)"
            )
        total = found.sum(1, keepdim=True).clamp_min(FLOOR)
        return Outputs(safe_log(found / total), kind="log_prob")


def average(parts: list[Outputs]) -> Outputs:
    """The mean of distributions as log-probabilities, at the element-wise smallest (h, w).

    Existence, if all parts have it, is the logit of the mean probability.

    Args:
        parts: with logits or log-probabilities (B, K, h_i, w_i); at least one.
    """
    height, width = (min(part.logits.shape[axis] for part in parts) for axis in (2, 3))
    # The softmax of log-probabilities are the probabilities.
    shares = (part.logits.float().softmax(1) for part in parts)
    pooled = [F.adaptive_avg_pool2d(share, (height, width)) for share in shares]
    total = sum(pooled[1:], pooled[0])
    exist = None
    existing = [part.exist for part in parts if part.exist is not None]
    if len(existing) == len(parts):
        chances = torch.stack([logits.float().sigmoid() for logits in existing])
        exist = chances.mean(0).logit(eps=1e-6)  # 1 - 1e-8 is 1 in float32
    return Outputs(safe_log(total / len(parts)), exist=exist, kind="log_prob")


class Teachers(Frozen):
    """All teachers of a run; a call returns Outputs by name.

    Args:
        members: networks and black boxes by name.
        ensembles: by name, the names of their members (also ensembles, without a cycle).
        used: names of the teachers whose outputs are returned.

    Raises:
        ConfigError: unknown or cyclic members of ensembles.
    """

    def __init__(
        self,
        members: Mapping[str, Teacher | BlackBox],
        ensembles: Mapping[str, list[str]],
        used: Collection[str],
    ) -> None:
        super().__init__()
        self.training = False
        self.members: ModuleMap[Teacher | BlackBox] = ModuleMap(members)
        self.ensembles = _in_order(ensembles, members)
        self.used = [name for name in (*members, *self.ensembles) if name in used]
        self.names = [*members, *ensembles]

    def forward(self, images: Tensor) -> dict[str, Outputs]:
        """Outputs of the used teachers for images (B, 3, H, W) uint8; each network runs once."""
        needed = self._closure(self.used)
        found = {name: self.members[name](images) for name in self.members if name in needed}
        for name, parts in self.ensembles.items():
            if name in needed:
                found[name] = average([found[part] for part in parts])
        return {name: found[name] for name in self.used}

    def alone(self, name: str) -> "SingleTeacher":
        """One teacher, with the members that it needs, which is called like a network."""
        needed = self._closure([name])
        members = {key: member for key, member in self.members.items() if key in needed}
        ensembles = {key: parts for key, parts in self.ensembles.items() if key in needed}
        return SingleTeacher(Teachers(members, ensembles, [name]), name)

    def tapped(self, name: str, needs: Needs) -> TappedNetwork:
        """Facts about the taps of teacher ``name``, for ``Method.build``.

        Raises:
            ConfigError: the method needs something that this teacher does not have.
        """
        member = None if name in self.ensembles else self.members[name]
        if member is None or isinstance(member, BlackBox):
            return TappedNetwork(self._checked_log_prob(name, needs), {})
        found = tapped(member.network, needs.teacher)
        if member.class_map is None or "logits" not in needs.teacher:
            return found
        self._require_log_prob(name, needs, "has other classes than the data")
        logits = replace(found.info["logits"], channels=member.num_classes)
        return replace(found, info={**found.info, "logits": logits})

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
        """``names`` and all members that they need."""
        needed = set(names)
        for name in reversed(self.ensembles):
            if name in needed:
                needed.update(self.ensembles[name])
        return needed


class SingleTeacher(Frozen):
    """One teacher of ``teachers`` that is called like a network."""

    def __init__(self, teachers: Teachers, name: str) -> None:
        super().__init__()
        self.training = False
        self.teachers, self.name = teachers, name

    @property
    def divisor(self) -> int:
        """Height and width of images must be multiples of it."""
        return math.lcm(*(member.divisor for member in self.teachers.members.values()))

    def forward(self, images: Tensor) -> Outputs:
        """Outputs for images (B, 3, H, W) uint8."""
        return self.teachers(images)[self.name]


def open_networks(
    configs: Mapping[str, TeacherConfig],
    networks: Mapping[str, Network | BlackBox],
    num_classes: int,
    classes: Sequence[str] = (),
) -> dict[str, Network | BlackBox]:
    """All teachers except ensembles, not yet frozen.

    Args:
        configs: the ``teachers:`` of a run.
        networks: objects of the caller, which replace entries of the same name.
        num_classes: number of classes of the data.
        classes: their names.

    Raises:
        SegKDError: see ``build_network``; names the teacher.
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
        taps: by teacher, the values that methods tap; teachers without any are not run.
        num_classes: number of classes of the data.
        networks: objects of the caller, which replace entries of ``configs`` of the same name.
        half: dtype of autocast; None: fp32.
        gradient: names of teachers whose outputs a method differentiates.
        classes: names of the data's classes.
        dataset: name of the dataset.

    Raises:
        ConfigError: unknown or cyclic members of ensembles, or see ``build_network``.
        CheckpointError: weights that are NaN or infinite; names teacher, tensor, and file.
    """
    given = networks or {}

    members: dict[str, Teacher | BlackBox] = {}
    ensembles: dict[str, list[str]] = {}
    for name in (*configs, *(name for name in given if name not in configs)):
        if name in given:
            network = given[name]
            if isinstance(network, nn.Module):
                require_finite(network.state_dict(), f"teachers.{name}")
        elif configs[name].ensemble:
            ensembles[name] = list(configs[name].ensemble)
            continue
        else:
            network = _configured(name, configs[name], num_classes, classes)
        matrix, text = _class_matrix(name, configs.get(name), classes, dataset)
        member = _frozen(
            name, network, num_classes, taps.get(name, ()), half, name in gradient, matrix
        )
        if isinstance(member, Teacher):
            member.about_classes = text
        members[name] = member
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
) -> tuple[Tensor | None, str]:
    """The matrix of a configured class map, and text about it; None without one."""
    if config is None or config.class_map is None:
        return None, ""
    try:
        matrix = class_matrix(config.class_map, list(classes), dataset)
        return matrix, described(matrix, source_classes(config.class_map), classes)
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
    """The ensembles in an order in which each comes after its members."""
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
