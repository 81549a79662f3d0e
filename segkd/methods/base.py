"""The contract of a distillation method.

A method is a module that says what it needs, builds its own parts, and returns named Terms. It
neither weighs nor schedules nor reduces over processes: the engine does.
"""

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkd.conversion import Conversion
from segkd.errors import FormerName
from segkd.method_config import AutoWeight, MethodConfig, Weight
from segkd.structures import Batch, Outputs, Term

__all__ = [
    "AutoWeight",
    "BuildContext",
    "Context",
    "Conversion",
    "Method",
    "MethodConfig",
    "Needs",
    "TapInfo",
    "TapNames",
    "Weight",
]

_FORMER_NAMES = {  # of version 0.1, for methods of other packages
    "own_loss": "inner_loss",
    "own_steps": "inner_steps",
    "own_parameters": "inner_parameters",
    "own_optimizer": "inner_optimizer",
    "taught": "taps_with_gradient",
}
PRE = ":pre"  # suffix of a tap: the value before the activation that made it


@dataclass(frozen=True)
class Needs:
    """What a method asks for. Taps are names as in ``models.taps``."""

    student: tuple[str, ...] = ()
    teacher: tuple[str, ...] = ()
    labels: bool = False
    index: bool = False
    teacher_gradient: bool = False
    min_classes: int = 2
    accepts_log_prob: bool = False
    rewrites_batch: bool = False


@dataclass(frozen=True)
class TapInfo:
    """Shape of a tapped value: channels, and the input size divided by its size."""

    channels: int
    stride: int


@dataclass(frozen=True)
class TapNames:
    """The taps that a network has names for: stages from shallow to deep, ``head``, ``logits``.

    ``has_pre(tap)`` says whether an activation makes that value, so that there is one before it.
    """

    names: tuple[str, ...]
    has_pre: Callable[[str], bool] = lambda tap: True

    @property
    def stages(self) -> list[str]:
        """``stage1`` … from shallow to deep, as far as there are any."""
        found = [name for name in self.names if re.fullmatch(r"stage\d+", name)]
        return sorted(found, key=lambda name: int(name.removeprefix("stage")))


@dataclass(frozen=True)
class BuildContext:
    """Everything that ``Method.build`` may need to know of both networks and of the data.

    ``norm_before(tap)`` is the teacher's normalisation module right before the activation of
    that tap (None if there is none); ``student_modules`` / ``teacher_modules`` map a tap to the
    module that makes it; ``new_model(config)`` builds a further network, e.g. a peer.
    """

    student: Mapping[str, TapInfo]
    teacher: Mapping[str, TapInfo]
    num_classes: int
    dataset_size: int
    norm_before: Callable[[str], nn.Module | None] = lambda tap: None
    student_modules: Mapping[str, nn.Module] = field(default_factory=dict)
    teacher_modules: Mapping[str, nn.Module] = field(default_factory=dict)
    new_model: Callable[[Any], nn.Module] | None = None


@dataclass
class Context:
    """The surroundings of one step, for one entry of ``methods:``.

    ``generator`` is drawn from (seed, step, entry): the same on all processes.
    ``image_generators`` has one per image, drawn from its index as well.
    ``gather(x)`` joins dim 0 of all processes in rank order, unequal lengths allowed; its
    backward sums over processes. ``all_sum(x)`` adds over processes, and so does its backward.
    """

    batch: Batch
    step: int = 0
    total_steps: int = 1
    mask: Literal["valid", "not_padding"] = "valid"
    generator: torch.Generator | None = None
    image_generators: list[torch.Generator] = field(default_factory=list)
    task_loss: Callable[[Outputs, Batch], dict[str, Term]] | None = None
    student_forward: Callable[[Tensor], Outputs] | None = None
    gather: Callable[[Tensor], Tensor] = lambda x: x
    all_sum: Callable[[Tensor], Tensor] = lambda x: x

    def mask_at(self, h: int, w: int) -> Tensor:
        """(B, h, w) bool: the positions that may teach, by nearest neighbour."""
        mask = self.batch.valid if self.mask == "valid" else self.batch.not_padding
        return nearest(mask, h, w)

    def labels_at(self, h: int, w: int) -> Tensor:
        """(B, h, w) int64 labels by nearest neighbour; void and padding are ``ignore_index``."""
        labels = self.batch.labels.masked_fill(~self.batch.not_padding, self.batch.ignore_index)
        return nearest(labels, h, w)


class Method(nn.Module):
    """Base of all methods; ``loss`` is the only thing that must be written.

    Class attributes: ``name`` (in configs), ``kind`` (response, feature, relation, self, …),
    ``Config``, ``default_weights`` (of terms, from the paper), and what ``segkd explain``
    prints: ``paper`` (one line), ``year``, ``equation``, ``conversions`` (by peer: its weight in
    our units), ``cost`` (one line) and ``published`` (a gain in segmentation, and who says so).
    ``paper_weight`` is what ``weight: paper`` stands for: the published one in our units.
    ``scale_free`` is False where nearest-up-sampling all inputs changes the loss: pooling by a
    fixed kernel, modules wider than 1x1.
    """

    name: ClassVar[str]
    kind: ClassVar[str]
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    paper: ClassVar[str] = ""
    year: ClassVar[int | None] = None
    published: ClassVar[str] = ""
    equation: ClassVar[str] = ""
    conversions: ClassVar[Mapping[str, Conversion]] = {}
    cost: ClassVar[str] = ""
    default_weights: ClassVar[Mapping[str, float]] = {}
    paper_weight: ClassVar[float] = 1.0
    scale_free: ClassVar[bool] = True
    needs: Needs = Needs()  # a property where it depends on the config

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Takes what a class of an earlier version calls otherwise, and says so."""
        super().__init_subclass__(**kwargs)
        for old, new in _FORMER_NAMES.items():
            if old in cls.__dict__ and new not in cls.__dict__:
                setattr(cls, new, cls.__dict__[old])
                text = f"{cls.__module__}.{cls.__name__}.{old} is now called `{new}`"
                warnings.warn(text, FormerName, stacklevel=2)

    def __init__(self, config: MethodConfig | None = None) -> None:
        super().__init__()
        self.config = config if config is not None else self.Config()

    @property
    def weight(self) -> float:
        """The entry's factor of all terms; 1 for one that finds itself."""
        weight = self.config.weight
        if weight == "paper":
            return self.published_weight()
        return 1.0 if isinstance(weight, AutoWeight) else weight

    def published_weight(self) -> float:
        """What ``weight: paper`` stands for; a method whose config decides overrides it."""
        return self.paper_weight

    @property
    def taps_with_gradient(self) -> tuple[str, ...]:
        """Taps of the student that get a gradient; the others only teach."""
        return self.needs.student

    def bind_taps(self, student: TapNames, teacher: TapNames | None) -> None:
        """Replaces default taps by what the networks have, before ``needs`` is read for good.

        Taps that the config names stay as they are. ``teacher`` is None where the method has no
        teacher, or one without features (an ensemble, a black box).

        Raises:
            ConfigError: a network has fewer stages than the method needs.
        """

    def build(self, spec: BuildContext) -> None:
        """Makes adapters, heads, banks, critics. Raises ConfigError if the method cannot run."""

    def loss(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, context: Context
    ) -> dict[str, Term]:
        """The method's terms by name. ``teacher`` is detached, or None without teachers."""
        raise NotImplementedError

    def prepare(self, batch: Batch, context: Context) -> Batch:
        """Rewrites the batch before any forward pass (needs ``rewrites_batch``)."""
        return batch

    inner_steps: int = 0  # times per step that ``inner_loss`` is minimised

    def inner_parameters(self) -> list[nn.Parameter]:
        """Parameters trained by ``inner_loss`` alone, e.g. a critic; frozen otherwise."""
        return []

    def trained_parameters(self) -> list[nn.Parameter]:
        """Parameters that the student's step trains: all but the own ones."""
        own = {id(parameter) for parameter in self.inner_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in own]

    def inner_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=4e-4, betas=(0.9, 0.99))

    def inner_loss(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, context: Context
    ) -> dict[str, Term]:
        """Terms of the own parameters; all inputs are detached."""
        raise NotImplementedError

    def after_step(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, context: Context
    ) -> None:
        """Fills banks and averages after the student's step; no gradient."""

    def finish(self, student: nn.Module) -> None:
        """Acts on the trained student once, at the end of the run."""


def nearest(values: Tensor, h: int, w: int) -> Tensor:
    """(B, H, W) -> (B, h, w) by ``mode="nearest"``, any dtype, without a detour over floats."""
    if values.shape[1:] == (h, w):
        return values
    rows, columns = (
        F.interpolate(torch.arange(size, dtype=torch.float64)[None, None], target, mode="nearest")
        for size, target in zip(values.shape[1:], (h, w), strict=True)
    )
    rows, columns = (index.flatten().long().to(values.device) for index in (rows, columns))
    return values[:, rows][:, :, columns]
