"""The teachers of a run: frozen networks, black boxes, and ensembles of both."""

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from segkd import registry
from segkd.checkpoint import require_finite
from segkd.config.schema import TeacherConfig
from segkd.data.prediction_crops import Store
from segkd.errors import ConfigError, did_you_mean
from segkd.methods.base import Needs, TapInfo
from segkd.models.black_box import QueriedBox, StoredBox
from segkd.models.ensemble import Draw, Ensemble, in_order
from segkd.models.frozen import BlackBox, Frozen, TappedNetwork, Teacher, tapped
from segkd.models.network import Network
from segkd.models.output_cache import OutputCache
from segkd.models.teacher_members import brought, configured, frozen, precision_of
from segkd.models.teacher_table import table_of_teacher
from segkd.modules.module_map import ModuleMap
from segkd.structures import Batch, Outputs


class Teachers(Frozen):
    """All teachers of a run; a call returns Outputs by name.

    Args:
        members: networks and black boxes by name.
        ensembles: by name; their members may be ensembles as well, without a cycle.
        used: names of the teachers whose outputs are returned.

    Attributes:
        caches: by teacher, those whose outputs are kept on disk.

    Raises:
        ConfigError: unknown or cyclic members of ensembles.
    """

    def __init__(
        self,
        members: Mapping[str, Teacher | BlackBox],
        ensembles: Mapping[str, Ensemble],
        used: Collection[str],
    ) -> None:
        super().__init__()
        self.training = False
        self.members: ModuleMap[Teacher | BlackBox] = ModuleMap(members)
        self.ensembles = _checked(ensembles, members)
        _require_classes(self.ensembles, members)
        self.used = [name for name in (*members, *self.ensembles) if name in used]
        self.names = [*members, *ensembles]
        self.caches: dict[str, OutputCache] = {}

    def forward(
        self,
        images: Tensor,
        batch: Batch | None = None,
        draw: Draw | None = None,
        names: Collection[str] | None = None,
    ) -> dict[str, Outputs]:
        """Outputs of the used teachers; each network runs once.

        Args:
            images: (B, 3, H, W) uint8.
            batch: with their labels, for ensembles by loss, and with stored predictions; None: as
                if all pixels were void, and stores find images by their content.
            draw: the generator of an ensemble by its name, for ensembles at random; None: they are
                the mean of their members.
            names: of the used teachers those that are run; None: all.
        """
        used = [name for name in self.used if names is None or name in names]
        labels = None if batch is None else batch.labels
        if batch is not None and labels is not None:
            labels = labels.masked_fill(~batch.not_padding, batch.ignore_index)
        parts = {
            name: ensemble.drawn(None if draw is None else draw(name))
            for name, ensemble in self.ensembles.items()
        }
        needed = self._closure(used, parts)
        found = {}
        for name, member in self.members.items():
            if name not in needed:
                continue
            if isinstance(member, StoredBox) and batch is not None:
                found[name] = member.from_batch(name, batch.extra)
            elif name in self.caches and batch is not None:
                found[name] = self.caches[name].outputs(images, batch)
            else:
                found[name] = member(images)
        for name, ensemble in self.ensembles.items():
            if name in needed:
                found[name] = ensemble.combined([found[part] for part in parts[name]], labels)
        return {name: found[name] for name in used}

    def alone(self, name: str) -> "SingleTeacher":
        """One teacher, with the members that it needs, which is called like a network."""
        needed = self._closure([name])
        members = {key: member for key, member in self.members.items() if key in needed}
        ensembles = {key: one for key, one in self.ensembles.items() if key in needed}
        return SingleTeacher(Teachers(members, ensembles, [name]), name)

    def needed(self) -> Collection[str]:
        """Names of the used teachers, and of the members of used ensembles."""
        return self._closure(self.used)

    def stores(self) -> dict[str, Store]:
        """The stored predictions of the used teachers."""
        needed = self.needed()
        members = ((name, part) for name, part in self.members.items() if name in needed)
        return {name: part.store for name, part in members if isinstance(part, StoredBox)}

    def unknown(self, name: str) -> set[int]:
        """Ids of the data's classes that neither a teacher nor any member of it can know."""
        if name not in self.ensembles:
            return set(self.members[name].unknown)
        return set.intersection(*map(self.unknown, self.ensembles[name].members))

    def news(self) -> Iterator[str]:
        """What happened to black boxes since the last call, for the log."""
        for name, member in self.members.items():
            text = member.news() if isinstance(member, QueriedBox) else ""
            if text:
                yield f"teacher {name}: {text}"

    def silent(self, outputs: Mapping[str, Outputs]) -> list[str]:
        """Warnings about teachers that had no prediction for any image of a batch.

        Args:
            outputs: of the batch, by teacher.
        """
        text = "had no prediction for any position of the first batch, so it teaches nothing there"
        known = ((name, found.known) for name, found in outputs.items())
        return [f"WARNING: teacher {n}: {text}" for n, k in known if k is not None and not k.any()]

    def unused(self) -> list[str]:
        """Names of the teachers that no method uses, not even as members of another one."""
        needed = self._closure(self.used)
        return [name for name in self.names if name not in needed]

    def not_evaluated(self, name: str) -> str:
        """Why a teacher is not scored before the training; empty if it is."""
        needed = self._closure([name])
        members = (part for key, part in self.members.items() if key in needed)
        return next(filter(None, (part.not_evaluated for part in members)), "")

    def has_classes(self, name: str) -> bool:
        """Whether a teacher has classes; a backbone has features alone."""
        member = dict(self.members.items()).get(name)
        return not isinstance(member, Teacher) or member.network.has_classes

    def licence(self, name: str) -> dict[str, str]:
        """``licence`` of a network's weights, if others published them; may be empty text."""
        member = dict(self.members.items()).get(name)
        known = member.network.licence if isinstance(member, Teacher) else None
        return {} if known is None else {"licence": known}

    def tapped(self, name: str, needs: Needs) -> TappedNetwork:
        """Facts about the taps of teacher ``name``, for ``Method.build``.

        Raises:
            ConfigError: the method needs something that this teacher does not have.
        """
        member = None if name in self.ensembles else self.members[name]
        if member is None or isinstance(member, BlackBox):
            return TappedNetwork(self._checked_log_prob(name, needs))
        if "logits" in needs.teacher and not member.network.has_classes:
            raise ConfigError(
                f"needs the teacher's logits, but teacher '{name}' ({member.network.title}) has "
                f"features without classes. {_on_features()}"
            )
        found = tapped(member.network, needs.teacher)
        if member.network.kind == "log_prob" and "logits" in needs.teacher:
            self._require_log_prob(name, needs, "is a mask model")
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
            other = "Tap features" if "classes" in why else "Name a single network as `teacher`"
            raise ConfigError(
                f"needs logits, but teacher '{name}' {why} and returns probabilities. {other}, or "
                "use a method on probabilities such as kd"
            )

    def _logits_info(self, name: str) -> TapInfo:
        if name in self.ensembles:
            parts = [self._logits_info(part) for part in self.ensembles[name].members]
            return TapInfo(parts[0].channels, max(part.stride for part in parts))
        member = self.members[name]
        if isinstance(member, BlackBox):
            return TapInfo(member.num_classes, member.stride)
        info = member.network.tap_info(["logits"])["logits"]
        return replace(info, channels=member.num_classes)

    def _closure(
        self, names: Collection[str], parts: Mapping[str, Sequence[str]] | None = None
    ) -> set[str]:
        """``names`` and all members that they need; ``parts``: of each ensemble, if not all."""
        needed = set(names)
        for name, ensemble in reversed(self.ensembles.items()):
            if name in needed:
                needed.update(ensemble.members if parts is None else parts[name])
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

    @property
    def unknown(self) -> set[int]:
        """Ids of the data's classes that it cannot know."""
        return self.teachers.unknown(self.name)

    def forward(self, images: Tensor) -> Outputs:
        """Outputs for images (B, 3, H, W) uint8."""
        return self.teachers(images)[self.name]


def open_networks(
    configs: Mapping[str, TeacherConfig],
    networks: Mapping[str, Network | BlackBox],
    num_classes: int,
    classes: Sequence[str] = (),
    stride: int = 1,
) -> dict[str, Network | BlackBox]:
    """All teachers except ensembles, not yet frozen.

    Args:
        configs: the ``teachers:`` of a run.
        networks: objects of the caller, which replace entries of the same name. They stay as they
            are: what is frozen later is a copy, whose outputs are in the order of the data.
        num_classes: number of classes of the data.
        classes: their names.
        stride: of the student's logits, to which black boxes are averaged.

    Raises:
        SegKDError: see ``build_network``; names the teacher.
    """
    opened = {}
    for name, config in configs.items():
        if name not in networks and not config.ensemble:
            opened[name] = configured(name, config, num_classes, classes, stride)
    for name, network in networks.items():
        opened[name] = brought(name, configs.get(name), network, classes)
    return opened


def build_teachers(
    configs: Mapping[str, TeacherConfig],
    taps: Mapping[str, Collection[str]],
    num_classes: int,
    *,
    networks: Mapping[str, Network | BlackBox] | None = None,
    half: torch.dtype | None = None,
    device: torch.device | None = None,
    gradient: Collection[str] = (),
    classes: Sequence[str] = (),
    dataset: str = "",
) -> Teachers:
    """The configured teachers, frozen.

    Args:
        configs: the `teachers:` of a run.
        taps: by teacher, the values that methods tap; teachers without any are not run.
        num_classes: number of classes of the data.
        networks: of ``open_networks``; entries of ``configs`` that are not among them are opened.
        half: dtype of the run's autocast, of teachers without a `precision`; None: fp32.
        device: of the run, see ``precision_of``; None: a CPU.
        gradient: names of teachers whose outputs a method differentiates.
        classes: names of the data's classes.
        dataset: name of the dataset.

    Raises:
        ConfigError: unknown or cyclic members of ensembles, or see ``build_network``.
        CheckpointError: weights that are NaN or infinite; names teacher, tensor, and file.
    """
    given = networks or {}
    members: dict[str, Teacher | BlackBox] = {}
    ensembles: dict[str, Ensemble] = {}
    for name in (*configs, *(name for name in given if name not in configs)):
        if name in given:
            network = given[name]
            if isinstance(network, nn.Module):
                require_finite(network.state_dict(), f"teachers.{name}")
        elif configs[name].ensemble:
            ensembles[name] = _ensemble(configs[name])
            continue
        else:
            network = configured(name, configs[name], num_classes, classes)
        table = table_of_teacher(name, configs.get(name), network, classes, dataset)
        config, slopes, tapped = configs.get(name), name in gradient, taps.get(name, ())
        own = precision_of(config, half, device, slopes)
        last = None if config is None else config.channels_last
        member = frozen(name, network, num_classes, tapped, own, slopes, table, last)
        if table is not None:
            text = table.text()
            member.about_classes = "; ".join(filter(None, (member.about_classes, text)))
            member.class_facts = table.facts()
        members[name] = member
    used = [name for name, tapped in taps.items() if tapped]
    return Teachers(members, ensembles, used)


def _on_features() -> str:
    """Which methods learn from features alone, for messages."""
    names: list[str] = []
    for kind in registry.methods:
        with contextlib.suppress(Exception):  # a plug-in may need keys of its configuration
            taps = kind().needs.teacher
            names += [kind.name] if taps and "logits" not in taps else []
    return (
        f"Methods that learn from features alone: {', '.join(names)}; others with a key `tap` can "
        "tap features, e.g. `tap: head`. Or name a teacher with classes as `teacher`"
    )


def _require_classes(
    ensembles: Mapping[str, Ensemble], members: Mapping[str, Teacher | BlackBox]
) -> None:
    for name, ensemble in ensembles.items():
        for part in ensemble.members:
            member = members.get(part)
            if isinstance(member, Teacher) and not member.network.has_classes:
                raise ConfigError(
                    f"teachers.{name}.ensemble: an ensemble is a mean of probabilities, but "
                    f"'{part}' ({member.network.title}) has features without classes. Remove it, "
                    f"and name it as `teacher` of a method on features"
                )


def _ensemble(config: TeacherConfig) -> Ensemble:
    return Ensemble(tuple(config.ensemble), config.combine, config.loss_temperature)


def _checked(ensembles: Mapping[str, Ensemble], members: Collection[str]) -> dict[str, Ensemble]:
    """The ensembles in an order in which each comes after its members."""
    for name, ensemble in ensembles.items():
        for part in ensemble.members:
            if part not in members and part not in ensembles:
                hint = did_you_mean(part, [*members, *ensembles])
                raise ConfigError(f"teachers.{name}.ensemble: there is no teacher '{part}'.{hint}")
    ordered, stuck = in_order(ensembles)
    if stuck:
        raise ConfigError(f"teachers: the ensembles {', '.join(stuck)} contain each other")
    return ordered
