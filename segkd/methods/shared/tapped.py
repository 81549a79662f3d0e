"""Bases of methods on tapped values: one tap of both networks, or a list of pairs of taps.

Default taps are written for networks with five stages and count from the deepest: ``stage5`` is the
deepest stage of a network, ``stage4`` the one before it. So student and teacher may have different
numbers of stages, and the taps of a pair different names.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from torch import Tensor, nn
from typing_extensions import TypeVar

from segkd.errors import ConfigError
from segkd.methods.base import PRE, BuildContext, Context, Method, MethodConfig, Needs, TapNames
from segkd.methods.shared.feature_scale import FeatureScale, ScaleKeys
from segkd.modules.adapter import channel_adapter
from segkd.structures import Outputs

_DEEPEST = 5  # number of the deepest stage in default taps


class TapKeys(MethodConfig):
    """Keys of a ``TapMethod``."""

    tap: str = Field("head", description="tapped value of the student")
    teacher_tap: str = Field("", description="tapped value of the teacher; default: `tap`")


TapT = TypeVar("TapT", bound=TapKeys, default=TapKeys, covariant=True)


class TapMethod(Method[TapT]):
    """Compares one tap of the student with one of the teacher.

    Attributes:
        feature_scale: of methods whose config has ``ScaleKeys``.
        needs_labels: the method reads labels; a class attribute, or a property if it depends on
            the config.
    """

    feature_scale: FeatureScale
    if TYPE_CHECKING:  # read-only, so that a subclass may have an attribute or a property

        @property
        def needs_labels(self) -> bool: ...

    else:
        needs_labels = False

    def __init__(self, config: TapT | None = None) -> None:
        super().__init__(config)
        if isinstance(self.config, ScaleKeys):
            self.feature_scale = FeatureScale(self.config.scale == "teacher")

    @property
    def teacher_tap(self) -> str:
        """Name of the teacher's tap."""
        return self.config.teacher_tap or self.config.tap

    @property
    def needs(self) -> Needs:
        """Both taps, and labels if ``needs_labels``."""
        return Needs((self.config.tap,), (self.teacher_tap,), labels=self.needs_labels)

    def tapped(self, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
        """Both tapped values, (B, C_s, h, w) and (B, C_t, h', w')."""
        return student.tap(self.config.tap), teacher.tap(self.teacher_tap)

    def scaled(self, student: Outputs, teacher: Outputs, context: Context) -> tuple[Tensor, Tensor]:
        """Both tapped values, divided by ``feature_scale``.

        Returns:
            (B, C_s, h, w) and (B, C_t, h', w'), the latter detached.
        """
        features, target = self.tapped(student, teacher)
        return self.feature_scale(features, target.detach(), context)

    def aligned(self, spec: BuildContext) -> nn.Module:
        """An adapter from the student's channels to the teacher's; the identity if equal."""
        mine, theirs = spec.student[self.config.tap], spec.teacher[self.teacher_tap]
        return channel_adapter(mine.channels, theirs.channels)


class TapListKeys(MethodConfig):
    """Keys of a ``TapListMethod``; a method's config repeats ``taps`` to describe its default."""

    taps: list[str] | None = Field(None, description="taps of the student")
    teacher_taps: list[str] = Field([], description="those of the teacher; default: like `taps`")


TapListT = TypeVar("TapListT", bound=TapListKeys, default=TapListKeys, covariant=True)


class TapListMethod(Method[TapListT]):
    """Compares several taps pair by pair.

    Attributes:
        default_taps: used where the config has None as ``taps``, see ``bound_pairs``.
        least_taps: smallest number of pairs.
        pairs: the teacher's tap of each of the student's, in order.
        feature_scales: one per pair, of methods whose config has ``ScaleKeys``.
    """

    default_taps: ClassVar[tuple[str, ...]] = ()
    least_taps: ClassVar[int] = 1
    pairs: dict[str, str]
    feature_scales: nn.ModuleList

    def __init__(self, config: TapListT | None = None) -> None:
        super().__init__(config)
        taps = self.default_taps if self.config.taps is None else self.config.taps
        self._use(paired_taps(taps, self.config.teacher_taps, self.name))

    def bind_taps(self, student: TapNames, teacher: TapNames | None) -> None:
        """Replaces ``default_taps`` by taps that both networks have."""
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
        """The taps of all pairs."""
        return Needs(student=tuple(self.pairs), teacher=tuple(self.pairs.values()))

    def scaled(
        self, student: Outputs, teacher: Outputs, context: Context
    ) -> list[tuple[Tensor, Tensor]]:
        """The tapped values of each pair, divided by its feature scale.

        Returns:
            For each pair (B, C_s, h, w) and (B, C_t, h', w'), the latter detached.
        """
        return [
            scale(student.tap(mine), teacher.tap(theirs).detach(), context)
            for scale, (mine, theirs) in zip(self.feature_scales, self.pairs.items(), strict=True)
        ]

    def aligned(
        self, spec: BuildContext, always: bool = False, gain: float | None = None
    ) -> nn.ModuleList:
        """An adapter per pair, from the student's channels to the teacher's.

        Args:
            spec: shapes of the taps.
            always, gain: as of ``modules.adapter.channel_adapter``.
        """
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
    """Translates default taps into the names of two networks, aligned from the deepest stage.

    Args:
        default: taps of a network with ``stage1`` … ``stage5``. Stages that one of the networks
            is too shallow for are skipped; ``head`` is the deepest stage of a network without a
            head; ``:pre`` is dropped if the value is not the output of an activation.
        student: taps of the student.
        teacher: taps of the teacher; None: they have the default names.
        chosen: taps of the teacher that the config names, one for each default.
        least: smallest number of pairs.

    Returns:
        The teacher's tap of each of the student's, in the order of ``default``.

    Raises:
        ConfigError: fewer than ``least`` pairs remain, or fewer than ``chosen``.
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
    """The network's name of a default tap, or None if it is too shallow."""
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
    """Pairs the taps of a config, in order.

    Args:
        student: names of the student's taps, each once.
        teacher: as many of the teacher; empty: the same names.
        method: name of the method, for the error.

    Returns:
        The teacher's tap of each of the student's.

    Raises:
        ConfigError: no taps, duplicate taps, or unequal numbers.
    """
    if not student or len(set(student)) < len(student):
        raise ConfigError(
            f"method '{method}': got taps {list(student)}, expected at least one and no duplicates"
        )
    if teacher and len(teacher) != len(student):
        raise ConfigError(
            f"method '{method}': got {len(student)} taps but {len(teacher)} teacher_taps. Give one "
            "of the teacher for each of the student, or omit teacher_taps to use the same names"
        )
    return dict(zip(student, teacher or student, strict=True))
