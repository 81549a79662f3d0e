"""What methods on tapped values share: one tap of both networks, or a list of pairs of taps."""

from collections.abc import Sequence

from pydantic import BaseModel, Field
from torch import Tensor, nn

from segkd.errors import ConfigError
from segkd.methods.base import Context, Method, MethodConfig, Needs, Spec
from segkd.modules.adapter import channel_adapter
from segkd.modules.feature_scale import FeatureScale, ScaleKeys
from segkd.structures import Outputs


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

    def aligned(self, spec: Spec) -> nn.Module:
        """An adapter from the student's channels to the teacher's; none where they are equal."""
        mine, theirs = spec.student[self.config.tap], spec.teacher[self.teacher_tap]
        return channel_adapter(mine.channels, theirs.channels)


class TapListMethod(Method):
    """Compares several taps pair by pair; the config has ``taps`` and ``teacher_taps``."""

    def __init__(self, config: MethodConfig | None = None) -> None:
        super().__init__(config)
        self.pairs = paired_taps(self.config.taps, self.config.teacher_taps, self.name)
        if isinstance(self.config, ScaleKeys):
            enabled = self.config.scale == "teacher"
            self.feature_scales = nn.ModuleList(FeatureScale(enabled) for _ in self.pairs)

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

    def aligned(self, spec: Spec, always: bool = False, gain: float | None = None) -> nn.ModuleList:
        """An adapter for each pair, from the student's channels to the teacher's."""
        channels = [
            (spec.student[mine].channels, spec.teacher[theirs].channels)
            for mine, theirs in self.pairs.items()
        ]
        return nn.ModuleList(channel_adapter(*pair, always=always, gain=gain) for pair in channels)


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
