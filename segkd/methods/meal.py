"""MEAL: similar outputs at several stages that critics cannot tell, of one teacher or of several.

Shen, He, Xue: MEAL: Multi-Model Ensemble via Adversarial Learning. AAAI 2019, arXiv 1812.02425.

    L = mean KL(p_t ‖ p_s) + Σ_stages [γ · KL(q_t ‖ q_s) − η · log D(f_s)]
    D maximises mean_cells log D(f_t) + log(1 − D(f_s)),    q = softmax over all numbers of f

f are the means of a stage's features in the cells of a grid, the student's by a 1x1 convolution in
the teacher's channels; of the logits, which have a critic as well, the means of p. With `teachers`
one of them is drawn for each step (all of them run): each has convolutions and critics of its own.
Taps: the last three stages and the logits. The paper pools features to vectors of fixed length, D
sees the whole of one, the student's term is log(1 − D), and no labels are used: here they are by
default, see `task.weight`. In the public code D ends in a ReLU, and student and D both *minimise*
its loss; teachers are in training mode; and only the last output counts, as with ``taps: []``.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn.functional import softplus

from segkd.errors import ConfigError
from segkd.methods.base import BuildContext, Context, Conversion, Needs, TapNames, Weight
from segkd.methods.shared.critics import CriticKeys, CriticMethod
from segkd.methods.shared.feature_scale import ScaleKeys
from segkd.methods.shared.pooled_stages import PooledStages, cell_mean, similarity
from segkd.methods.shared.tapped import TapListKeys, bound_pairs, paired_taps
from segkd.modules.critic import frozen
from segkd.ops.grid import grid_means
from segkd.ops.masked import position_mask
from segkd.ops.resize import common_size
from segkd.ops.softmax_kl import pixel_kl
from segkd.structures import Batch, Outputs, Term

_TAPS = ("stage3", "stage4", "stage5")
_OUTPUT = {"kd": 1.0, "adversarial_logits": 0.1}
_STAGE = {"similarity": 0.1, "adversarial": 0.1}


def meal_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    critic: nn.Module | None = None,
    mask: Tensor | None = None,
    grid: tuple[int, int] = (8, 16),
) -> Tensor:
    """KL(q_t ‖ q_s) of one stage, a mean over images, and −log D of the student, one over cells.

    Gradients reach only the student.

    Args:
        student: features (B, C, h, w).
        teacher: (B, C, h', w'), the same channels; detached.
        critic: (B, C, gh, gw) to (B, 1, gh, gw), the logit of "this is the teacher"; None: without.
        mask: (B, h, w) bool, True where positions are valid, at the size of both; None: all.
        grid: gh and gw, rows and columns of cells.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no position is valid.
    """
    (own, keep), (other, also) = (
        grid_means(maps, position_mask(maps, mask), grid) for maps in (student, teacher.detach())
    )
    keep = keep & also
    value = similarity(own, other, keep).value
    return value if critic is None else value + _deceived(critic, own, keep).value


def _deceived(critic: nn.Module, student: Tensor, keep: Tensor) -> Term:
    """−log D of the student, for a critic that does not learn from it."""
    return cell_mean(softplus(-frozen(critic, student)[:, 0]), keep)


class MEALConfig(TapListKeys, ScaleKeys, CriticKeys):
    """Keys of the method ``meal``."""

    weight: Weight = Field(0.5, description="factor of all terms; see docs/weights.md")
    taps: list[str] | None = Field(
        None,
        description="stages of the student; default: the last three; []: only the logits, which is "
        "possible with ensembles and black boxes, too",
    )
    teachers: list[str] = Field(
        [], description="names in `teachers:`; one is drawn for each step; default: `teacher`"
    )
    grid: tuple[PositiveInt, PositiveInt] = Field((8, 16), description="rows and columns of cells")
    critic_lr: PositiveFloat = Field(1e-3, description="learning rate of the critics' Adam")

    @model_validator(mode="before")
    @classmethod
    def _the_first_is_its_own(cls, keys: Any) -> Any:
        names = keys.get("teachers") if isinstance(keys, dict) else None
        if not isinstance(names, list | tuple) or not names:
            return keys
        own = keys.get("teacher") or names[0]
        if own != names[0] or len(set(map(str, names))) < len(names):
            raise ConfigError(
                f"teachers: {list(names)} was given, with teacher: {own}. Name each teacher once "
                "in `teachers`, and omit `teacher`"
            )
        return {**keys, "teacher": names[0]}


class MEAL(CriticMethod[MEALConfig]):
    """Terms ``kd``, and per tap ``similarity_TAP`` and ``adversarial_TAP``, also of the logits.

    Attributes:
        pairs: per teacher, its tap of each of the student's; the entry's own has the name "".
    """

    name = "meal"
    paper = "Shen, He, Xue: MEAL: Multi-Model Ensemble via Adversarial Learning, arXiv 1812.02425"
    year = 2019
    equation = "mean KL(p_t ‖ p_s) + Σ_stages γ · mean KL(q_t ‖ q_s) − η · mean log D(f_s)"
    cost = (
        "means of 8x16 cells, a 1x1 convolution and a critic of these per stage, and a forward "
        "pass of each of `teachers`"
    )
    exempt: ClassVar = {
        "swapped_axes": "the grid has more columns than rows",
        "more_padding": "cells are shares of the map",
    }
    default_weights: Mapping[str, float] = _OUTPUT | {
        f"{kind}_{tap}": weight for kind, weight in _STAGE.items() for tap in _TAPS
    }
    conversions: ClassVar = {
        "MEAL": Conversion(1, note="kd; gamma 1 is `weights.similarity_…: 1`; its critic is none"),
    }

    def __init__(self, config: MEALConfig | None = None) -> None:
        super().__init__(config)
        self.pairs: dict[str, dict[str, str]] = {}
        chosen = self.config.taps
        for name in ("", *self.config.teachers[1:]):
            taps = _TAPS if chosen is None else chosen
            self._use(name, paired_taps(taps, self.config.teacher_taps, self.name) if taps else {})

    def _use(self, name: str, pairs: dict[str, str]) -> None:
        self.pairs[name] = pairs
        stages = {f"{kind}_{tap}": w for kind, w in _STAGE.items() for tap in self.pairs[""]}
        self.default_weights = _OUTPUT | stages

    def bind_taps(self, student: TapNames, teacher: TapNames | None) -> None:
        if self.config.taps is None:
            self._use("", bound_pairs(_TAPS, student, teacher, chosen=self.config.teacher_taps))

    def bind_further(self, name: str, student: TapNames, teacher: TapNames | None) -> None:
        if self.config.taps is None:
            pairs = bound_pairs(_TAPS, student, teacher, chosen=self.config.teacher_taps)
            if pairs.keys() != self.pairs[""].keys():
                raise ConfigError(
                    f"the student's {', '.join(self.pairs[''])} would learn from "
                    f"'{self.config.teacher}', but its {', '.join(pairs)} from '{name}', which has "
                    "other stages. Name those that both have in `taps`"
                )
            self._use(name, pairs)

    @property
    def needs(self) -> Needs:
        taps = (*self.pairs[""], "logits")
        return Needs(taps, (*self.pairs[""].values(), "logits"), accepts_log_prob=True)

    @property
    def further_teachers(self) -> Mapping[str, tuple[str, ...]]:
        return {name: (*pairs.values(), "logits") for name, pairs in self.pairs.items() if name}

    def build(self, spec: BuildContext) -> None:
        shapes = {"": spec.teacher, **spec.further}
        self.sides = nn.ModuleList(
            PooledStages(
                pairs,
                spec.student,
                shapes[name],
                classes=spec.num_classes,
                grid=self.config.grid,
                scaled=self.config.scale == "teacher",
            )
            for name, pairs in self.pairs.items()
        )

    def inner_parameters(self) -> list[nn.Parameter]:
        return [p for n, p in self.named_parameters() if ".critics." in n]

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        side, teacher = self._drawn(teacher, context)
        mask = context.mask_at(*common_size(student.logits, teacher.logits))
        value = pixel_kl(student.logits, teacher.logits, mask=mask)
        value = value + self._nothing(side, self.trained_parameters())
        terms = {"kd": Term(value, mask.sum(dtype=torch.float64))}
        for stage in side(student, teacher, context):
            if stage.tap != "logits":
                alike = similarity(stage.student, stage.teacher, stage.keep)
                terms[f"similarity_{stage.tap}"] = alike
            deceived = _deceived(stage.critic, stage.student, stage.keep)
            terms[f"adversarial_{stage.tap}"] = deceived
        return terms

    def inner_loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        side, teacher = self._drawn(teacher, context)
        terms: dict[str, Term] = {}
        nothing = self._nothing(side, self.inner_parameters())
        for stage in side(student, teacher, context):
            both = torch.cat([stage.student.detach(), stage.teacher])
            of_own, of_other = stage.critic(both)[:, 0].chunk(2)
            term = cell_mean(softplus(of_own) + softplus(-of_other), stage.keep)
            terms[stage.tap] = Term(term.value + nothing, term.count)
        return terms

    def _drawn(self, teacher: Outputs, context: Context) -> tuple[nn.Module, Outputs]:
        """The parts and the outputs of the teacher of this step, the same on all processes."""
        names = list(self.pairs)
        number = 0
        if len(names) > 1:
            number = int(torch.randint(len(names), (), generator=context.step_generator))
        name = names[number]
        return self.sides[number], context.teachers[name] if name else teacher

    def _nothing(self, side: nn.Module, parameters: list[nn.Parameter]) -> Tensor | float:
        """0 with a gradient of 0 for the parts of teachers that were not drawn.

        Parameters without a gradient would count as unused in the first step, and be updated by
        momentum on several processes only.
        """
        own = {id(parameter) for parameter in side.parameters()}
        rest = [0 * parameter.sum() for parameter in parameters if id(parameter) not in own]
        return torch.stack(rest).sum() if rest else 0.0
