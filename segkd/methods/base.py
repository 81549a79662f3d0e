"""The contract of a distillation method.

A method is a module that declares what it needs, builds its own parts, and returns named Terms.
Weights, schedules and the reduction over processes are applied by the engine, not by the method.

``Method`` is the base of methods with a teacher, ``SelfMethod`` of those without. Both are generic
in their config: ``class KD(Method[KDConfig])`` makes ``KD.Config`` the class ``KDConfig``, and
``self.config`` an instance of it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, cast, get_args

import torch
from torch import nn
from typing_extensions import TypeVar  # typing's takes no default before Python 3.13

from segkd.conversion import Conversion
from segkd.method_config import AutoWeight, MethodConfig, Weight
from segkd.method_context import (
    IMAGE,
    PRE,
    BuildContext,
    Context,
    Needs,
    TapInfo,
    TapNames,
    nearest,
)
from segkd.method_names import take_former_names
from segkd.structures import Batch, Outputs, Term

__all__ = [
    "IMAGE",
    "PRE",
    "AutoWeight",
    "BuildContext",
    "Context",
    "Conversion",
    "Method",
    "MethodConfig",
    "Needs",
    "SelfMethod",
    "TapInfo",
    "TapNames",
    "Weight",
    "nearest",
]

ConfigT = TypeVar("ConfigT", bound=MethodConfig, default=MethodConfig, covariant=True)


class Method(nn.Module, Generic[ConfigT]):
    """Base of all methods; ``loss`` is the only method that must be implemented.

    Attributes:
        name: key in configs.
        kind: response, feature, relation, self, online, adversarial, ….
        Config: class of ``config``; set by ``Method[…]``, or a nested class.
        config: the keys of the entry.
        paper: authors, title and arXiv id in one line, printed by ``segkd explain`` like the next.
        year: of the publication.
        published: a published gain in segmentation, and its source.
        equation: the loss in one line.
        conversions: published weights in our units, by code base.
        cost: time and memory in one line.
        default_weights: weights of the terms; an instance may have its own.
        paper_weight: what ``weight: paper`` means: the published weight in our units.
        scale_free: False if nearest up-sampling of all inputs changes the loss, as it does with
            pooling by a fixed kernel and with modules wider than 1x1.
        exempt: checks of ``segkd.testing`` that do not apply to the method, with the reasons.
        inner_steps: how often per step ``inner_loss`` is minimised.
        teaches_meanwhile: in the phase of ``preparation_steps`` the entry teaches, too.
        needs: what the method requires; a class attribute, or a property if it depends on the
            config.
    """

    name: ClassVar[str]
    kind: ClassVar[str] = "other"
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    paper: ClassVar[str] = ""
    year: ClassVar[int | None] = None
    published: ClassVar[str] = ""
    equation: ClassVar[str] = ""
    conversions: ClassVar[Mapping[str, Conversion]] = {}
    cost: ClassVar[str] = ""
    default_weights: Mapping[str, float] = {}
    paper_weight: ClassVar[float] = 1.0
    scale_free: ClassVar[bool] = True
    exempt: ClassVar[Mapping[str, str]] = {}
    teaches_meanwhile: ClassVar[bool] = False
    if TYPE_CHECKING:  # read-only, so that a subclass may have an attribute or a property

        @property
        def needs(self) -> Needs: ...

        @property
        def inner_steps(self) -> int: ...

    else:
        needs = Needs()
        inner_steps = 0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Takes ``Config`` from ``Method[…]``, and attributes by their names of version 0.1."""
        super().__init_subclass__(**kwargs)
        if "Config" not in cls.__dict__:
            arguments = [get_args(base) for base in cls.__dict__.get("__orig_bases__", ())]
            for argument in (one for several in arguments for one in several):
                if isinstance(argument, type) and issubclass(argument, MethodConfig):
                    cls.Config = argument
        take_former_names(cls)

    def __init__(self, config: ConfigT | None = None) -> None:
        super().__init__()
        # Typing has no class variable of the type parameter: that Config is ConfigT is by
        # __init_subclass__.
        self.config = config if config is not None else cast("ConfigT", self.Config())

    @property
    def weight(self) -> float:
        """Factor of all terms of the entry; 1 for ``{auto: …}``, which the engine measures."""
        weight = self.config.weight
        if weight == "paper":
            return self.published_weight()
        return 1.0 if isinstance(weight, AutoWeight) else weight

    def published_weight(self) -> float:
        """What ``weight: paper`` means; overridden where it depends on the config."""
        return self.paper_weight

    @property
    def taps_with_gradient(self) -> tuple[str, ...]:
        """Taps of the student that receive a gradient; the others are targets only."""
        return self.needs.student

    @property
    def further_teachers(self) -> Mapping[str, tuple[str, ...]]:
        """Taps by teacher, of those that the entry reads besides its own: ``Context.teachers``."""
        return {}

    def bind_taps(self, student: TapNames, teacher: TapNames | None) -> None:
        """Replaces default taps by taps that the networks have; called before ``needs`` is final.

        Taps that the config names are kept. ``teacher`` is None if the method has no teacher, or
        one without features (an ensemble, a black box).

        Raises:
            ConfigError: a network has fewer stages than the method needs.
        """

    def bind_further(self, name: str, student: TapNames, teacher: TapNames | None) -> None:
        """``bind_taps`` for one of the ``further_teachers``, after that for the entry's own."""

    def build(self, spec: BuildContext) -> None:
        """Creates adapters, heads, banks, critics.

        Raises:
            ConfigError: the method cannot run with these networks or this number of classes.
        """

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        """The method's terms by name.

        Args:
            student: outputs with a graph.
            teacher: detached outputs of the entry's teacher. A method whose ``needs`` name no tap
                of a teacher gets None in a run without teachers: derive it from ``SelfMethod``.
            batch: the images and labels of this process.
            context: of the step.
        """
        raise NotImplementedError

    def prepare(self, batch: Batch, context: Context) -> Batch:
        """Rewrites the batch before any forward pass (needs ``rewrites_batch``).

        Called while the entry is active. The batch of the method's other functions is what this
        returns; ``inner_loss`` and ``after_step`` also get batches as they were, before ``start``.
        Each process returns its contiguous part of the global batch, with one image at least.
        """
        return batch

    def inner_parameters(self) -> list[nn.Parameter]:
        """Parameters trained by ``inner_loss`` only, e.g. of a critic; frozen otherwise."""
        return []

    def peers(self) -> Mapping[str, nn.Module]:
        """Networks that learn beside the student, by name; made in ``build`` by ``new_model``.

        The engine treats each of them as it treats the student: the task losses, an optimiser of
        the same kind with the same schedule, an average if ``ema`` is set, evaluation, a
        checkpoint. Their outputs are in ``context.peers``; terms of ``loss`` may teach them.
        """
        return {}

    def trained_parameters(self) -> list[nn.Parameter]:
        """Parameters trained by the student's optimiser: neither the inner ones nor peers'."""
        others = {id(parameter) for parameter in self.inner_parameters()}
        for peer in self.peers().values():
            others |= {id(parameter) for parameter in peer.parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in others]

    def notes(self, total_steps: int, images: int) -> list[str]:
        """Lines for the log at the start of a run, such as ``WARNING: …``; default: none.

        Args:
            total_steps: of the run.
            images: of a step, or of a micro-step, over all processes.
        """
        return []

    def preparation_steps(self, total_steps: int) -> int | None:
        """Length of a phase at the start of the run that trains the inner parameters beforehand.

        In these steps the entry only minimises ``inner_loss``; ``loss`` is not called, and the
        student learns from what else the run has. From then on ``loss`` acts, and the inner
        parameters are frozen.

        With ``teaches_meanwhile`` the phase begins at the entry's ``start``, and ``loss`` acts in
        it as well: it knows by ``context.preparing`` that inner parameters are still learning.

        Args:
            total_steps: of the run.

        Returns:
            A number of steps, 0 if they are trained already; None: there is no such phase, and
            ``inner_loss`` is minimised in all steps, as for a critic.
        """
        return None

    def inner_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser of ``inner_parameters``."""
        return torch.optim.Adam(parameters, lr=4e-4, betas=(0.9, 0.99))

    def inner_loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        """Terms that train ``inner_parameters``, by name; arguments as of ``loss``, detached."""
        raise NotImplementedError

    def after_step(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> None:
        """Updates banks and averages after the student's step; arguments as of ``inner_loss``."""


class SelfMethod(Method[ConfigT]):
    """Base of methods without a teacher: the student learns from itself and from labels.

    ``self_loss`` is the only method that must be implemented.
    """

    def loss(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, context: Context
    ) -> dict[str, Term]:
        """The terms of ``self_loss``; a teacher of other entries is ignored."""
        return self.self_loss(student, batch, context)

    def self_loss(self, student: Outputs, batch: Batch, context: Context) -> dict[str, Term]:
        """The method's terms by name.

        Args:
            student: outputs with a graph.
            batch: the images and labels of this process.
            context: of the step.
        """
        raise NotImplementedError
