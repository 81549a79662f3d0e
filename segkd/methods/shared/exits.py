"""Exits: classifiers at earlier stages of the student, which train the stages below them."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn
from typing_extensions import TypeVar

from segkd.methods.base import BuildContext, Context, Needs, SelfMethod, TapNames
from segkd.methods.shared.feature_scale import FeatureScale, ScaleKeys
from segkd.methods.shared.tapped import bound_pairs, paired_taps
from segkd.modules.masked_norm import MaskedGroupNorm
from segkd.ops.resize import common_size, match_sizes, reduce_valid
from segkd.ops.squared_distance import masked_mse
from segkd.structures import Batch, Outputs, Term

EXIT_TAPS = ("stage2", "stage3", "stage4")


class Exit(nn.Module):
    """Features and logits from an earlier stage, unaffected by the padding of a crop.

    Args:
        in_channels: channels of the stage.
        channels: channels of the network's final features.
        num_classes: K.
    """

    def __init__(self, in_channels: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.bottleneck = nn.Conv2d(in_channels, channels, kernel_size=3, padding=1, bias=False)
        self.norm = MaskedGroupNorm(channels)
        self.classifier = nn.Conv2d(channels, num_classes, kernel_size=1)
        nn.init.kaiming_normal_(self.bottleneck.weight)

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, channels, h, w) and logits (B, K, h, w) of a stage.

        Args:
            features: (B, in_channels, h, w).
            mask: (B, h, w) bool, True where positions are valid.
        """
        features = features.masked_fill(~mask.unsqueeze(1), 0)
        features = self.norm(self.bottleneck(features), mask).relu()
        return features, self.classifier(features)


@dataclass(frozen=True)
class ExitOutput:
    """What an exit computes in a step.

    Attributes:
        tap: its stage.
        logits: (B, K, h, w) at the stage's size.
        mask: (B, h, w) bool, True where the stage's positions are valid.
        task: the task losses of its logits, by name.
        feature: mean squared difference of its features and the network's final ones.
    """

    tap: str
    logits: Tensor
    mask: Tensor
    task: dict[str, Term]
    feature: Term

    def logits_beside(self, end: Tensor) -> Tensor:
        """Logits at the smaller size of these and ``end`` (B, K, h', w')."""
        return reduce_valid(self.logits, self.mask, common_size(self.logits, end))


class ExitKeys(ScaleKeys):
    """Keys of an ``ExitMethod``."""

    taps: list[str] | None = Field(
        None, description="stages with an exit; default: the three before the deepest"
    )
    head: str = Field("head", description="features at the network's end")
    temperature: PositiveFloat = Field(3.0, description="T of both softmaxes")


ExitT = TypeVar("ExitT", bound=ExitKeys, default=ExitKeys, covariant=True)


class ExitMethod(SelfMethod[ExitT]):
    """A method whose exits learn from labels and from the features at the network's end.

    Attributes:
        taps: stages with an exit.
    """

    taps: list[str]

    def __init__(self, config: ExitT | None = None) -> None:
        super().__init__(config)
        self.feature_scale = FeatureScale(self.config.scale == "teacher")
        taps = EXIT_TAPS if self.config.taps is None else self.config.taps
        self._use(list(paired_taps(taps, (), self.name)))  # refuses an empty list and duplicates

    def bind_taps(self, student: TapNames, teacher: TapNames | None) -> None:
        """Replaces default stages by those that the student has."""
        if self.config.taps is None:
            self._use(list(bound_pairs(EXIT_TAPS, student)))

    def _use(self, taps: list[str]) -> None:
        self.taps = taps

    @property
    def needs(self) -> Needs:
        """Stages, final features and logits of the student, and labels."""
        return Needs(student=(*self.taps, self.config.head, "logits"), labels=True)

    @property
    def taps_with_gradient(self) -> tuple[str, ...]:
        """The stages: the network's end only teaches."""
        return tuple(self.taps)

    def build(self, spec: BuildContext) -> None:
        """Creates the exits, with the channels of the final features."""
        channels = spec.student[self.config.head].channels
        self.exits = nn.ModuleList(
            Exit(spec.student[tap].channels, channels, spec.num_classes) for tap in self.taps
        )

    def outputs(self, student: Outputs, batch: Batch, context: Context) -> Iterator[ExitOutput]:
        """What each exit computes, from shallow to deep; arguments as of ``self_loss``."""
        end = student.tap(self.config.head).detach()
        # An exit's features are normalised: only the target has a scale.
        _, end = self.feature_scale(end, end, context)
        assert context.task_loss is not None  # set by the engine
        for tap, branch in zip(self.taps, self.exits, strict=True):
            stage = student.tap(tap)
            inside = context.mask_at(*stage.shape[-2:])
            features, logits = branch(stage, inside)
            task = context.task_loss(Outputs(logits), batch)
            size = common_size(features, end)
            mask = context.mask_at(*size)
            features = reduce_valid(features, inside, size)  # an exit knows nothing elsewhere
            value = masked_mse(*match_sizes(features, end), mask)
            feature = Term(value, mask.sum(dtype=torch.float64))
            yield ExitOutput(tap, logits, inside, task, feature)
