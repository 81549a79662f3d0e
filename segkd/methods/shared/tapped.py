"""What methods on tapped values share: one tap of both networks, or a list of pairs of taps.

Default taps are written for networks with five stages and count from the deepest: ``stage5`` is the
deepest stage that a network has, ``stage4`` the one before it. So student and teacher may have
other numbers of stages, and the taps of a pair other names.
"""

from collections.abc import Sequence
from typing import ClassVar

from pydantic import BaseModel, Field
from torch import Tensor, nn

from segkd.errors import ConfigError
from segkd.methods.base import PRE, BuildContext, Context, Method, MethodConfig, Needs, TapNames
from segkd.methods.shared.feature_scale import FeatureScale, ScaleKeys
from segkd.modules.adapter import channel_adapter
from segkd.structures import Outputs

TEACHER_TAPS = "those of the teacher; default: like `taps`"
_DEEPEST = 5  # number of the deepest stage in default taps


class TapKeys(BaseModel):
    """Keys of a ``TapMethod``: ``class Config(TapKeys, MethodConfig)``."""

    tap: str = Field("head", description="tapped value of the student")
    teacher_tap: str = Field("", description="tapped value of the teacher; default: `tap`")


class TapMethod(Method):
    """Compares one tap of the student with one of the teacher."""

    needs_labels = False

    def __init__(self, config: MethodConfig | None = None) -> None:
        super().__init__(config)
        if isinstance(self.config, ScaleKeys):
            self.feature_scale = FeatureScale(self.config.scale == "teacher")

    @property
    def teacher_tap(self) -> str:
        """Name of the teacher's tap."""
        return self.config.teacher_tap or self.config.tap

    @property
    def needs(self) -> Needs:
        return Needs((self.config.tap,), (self.teacher_tap,), labels=self.needs_labels)

    def tapped(self, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
        """Both tapped values, (B, C_s, h, w) and (B, C_t, h', w')."""
        return student.tap(self.config.tap), teacher.tap(self.teacher_tap)

    def scaled(self, student: Outputs, teacher: Outputs, context: Context) -> tuple[Tensor, Tensor]:
        """Both tapped values, divided as ``scale`` says; the teacher's without gradient."""
        features, target = self.tapped(student, teacher)
        return self.feature_scale(features, target.detach(), context)

    def aligned(self, spec: BuildContext) -> nn.Module:
        """An adapter from the student's channels to the teacher's; none where they are equal."""
        mine, theirs = spec.student[self.config.tap], spec.teacher[self.teacher_tap]
        return channel_adapter(mine.channels, theirs.channels)


class TapListMethod(Method):
    """Compares several taps pair by pair; the config has ``taps`` and ``teacher_taps``.

    Attributes:
        default_taps: where the config has None as ``taps``, see ``bound_pairs``.
        least_taps: number of pairs that the method needs.
        pairs: the teacher's tap of each of the student's, in order.
    """

    default_taps: ClassVar[tuple[str, ...]] = ()
    least_taps: ClassVar[int] = 1

    def __init__(self, config: MethodConfig | None = None) -> None:
        super().__init__(config)
        taps = self.default_taps if self.config.taps is None else self.config.taps
        self._use(paired_taps(taps, self.config.teacher_taps, self.name))

    def bind_taps(self, student: TapNames, teacher: TapNames | None) -> None:
        if self.config.taps is None:
            chosen, least = self.config.teacher_taps, self.least_taps
            self._use(bound_pairs(self.default_taps, student, teacher, chosen=chosen, least=least))

    def _use(self, pairs: dict[str, str]) -> None:
        self.pairs = pairs
        if isinstance(self.config, ScaleKeys):
            enabled = self.config.scale == "teacher"
            self.feature_scales = nn.ModuleList(FeatureScale(enabled) for _ in pairs)

    @property
    def needs(self) -> Needs:
        return Needs(student=tuple(self.pairs), teacher=tuple(self.pairs.values()))

    def scaled(
        self, student: Outputs, teacher: Outputs, context: Context
    ) -> list[tuple[Tensor, Tensor]]:
        """The tapped values of each pair, divided as ``scale`` says."""
        return [
            scale(student.tap(mine), teacher.tap(theirs).detach(), context)
            for scale, (mine, theirs) in zip(self.feature_scales, self.pairs.items(), strict=True)
        ]

    def aligned(
        self, spec: BuildContext, always: bool = False, gain: float | None = None
    ) -> nn.ModuleList:
        """An adapter for each pair, from the student's channels to the teacher's."""
        channels = [
            (spec.student[mine].channels, spec.teacher[theirs].channels)
            for mine, theirs in self.pairs.items()
        ]
        return nn.ModuleList(channel_adapter(*pair, always=always, gain=gain) for pair in channels)


def bound_pairs(
    default: Sequence[str],
    student: TapNames,
    teacher: TapNames | None = None,
    *,
    chosen: Sequence[str] = (),
    least: int = 1,
) -> dict[str, str]:
    """Default taps as the names that two networks have for them, aligned from the deepest stage.

    Args:
        default: taps of a network with ``stage1`` … ``stage5``. Stages that one of the networks
            is not deep enough for are left out; ``head`` is the deepest stage of a network that
            has none; ``:pre`` falls away where no activation makes the value.
        student: what the student has.
        teacher: what the teacher has; None: its taps are called like the default.
        chosen: taps of the teacher that the config names, one for each default.
        least: number of pairs that must remain.

    Returns:
        The teacher's tap of each of the student's, in the order of ``default``.

    Raises:
        ConfigError: fewer than ``least`` pairs remain, or fewer than are ``chosen``.
    """
    pairs: dict[str, str] = {}
    for number, tap in enumerate(default):
        mine = _bound(tap, student)
        theirs = chosen[number] if chosen else _bound(tap, teacher) if teacher else tap
        if mine is not None and theirs is not None:
            pairs.setdefault(mine, theirs)
    if len(pairs) < max(least, len(chosen)):
        raise ConfigError(
            f"needs {max(least, len(chosen))} of the default taps {', '.join(default)}, but "
            f"{_found(student, teacher)}. Name its taps in the config: 'module:<dotted.path>' "
            "reaches any submodule"
        )
    return pairs


def _found(student: TapNames, teacher: TapNames | None) -> str:
    mine, theirs = (", ".join(n.stages if n else ()) or "no stages" for n in (student, teacher))
    return f"the student has {mine}" + (f" and the teacher {theirs}" if teacher else "")


def _bound(tap: str, network: TapNames) -> str | None:
    """The network's name for a default tap, or None if it is not deep enough."""
    base, stages = tap.removesuffix(PRE), network.stages
    if base.startswith("stage"):
        above = _DEEPEST - int(base.removeprefix("stage"))
        if above >= len(stages):
            return None
        base = stages[-1 - above]
    elif base == "head" and base not in network.names and stages:
        base = stages[-1]
    return base + PRE if tap.endswith(PRE) and network.has_pre(base) else base


def paired_taps(student: Sequence[str], teacher: Sequence[str], method: str) -> dict[str, str]:
    """The teacher's tap of each tap of the student, in the order given.

    Args:
        student: names of the student's taps, each once.
        teacher: as many of the teacher; empty: the same names.
        method: for the error.

    Raises:
        ConfigError: no tap, a tap given twice, or unequal numbers.
    """
    if not student or len(set(student)) < len(student):
        raise ConfigError(
            f"method '{method}': got taps {list(student)}, expected at least one and none twice"
        )
    if teacher and len(teacher) != len(student):
        raise ConfigError(
            f"method '{method}': got {len(student)} taps but {len(teacher)} teacher_taps. Give one "
            "of the teacher for each of the student, or leave teacher_taps out for the same names"
        )
    return dict(zip(student, teacher or student, strict=True))
