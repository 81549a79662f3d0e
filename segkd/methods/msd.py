"""MSD: exits at several stages and the network's end teach each other.

Luan, Zhao, Yang, Dai: MSD: Multi-Self-Distillation Learning via Multi-classifiers within Deep
Neural Networks. 2019, arXiv 1911.09418.

    L = Σ_exits [ task(z_e) + λ · mean (F_e − F_end)² ]
        + α T² Σ_c mean over the teachers d of c of mean over pixels of KL(p_d ‖ p_c)
    classifiers c: the exits and the end;   p = softmax(z / T), of teachers detached

Taps: the three stages before the student's deepest, its ``head`` (F_end) and ``logits``. Exits are
those of ``byot``: 3x3 convolution, norm, ReLU, 1x1 convolution; they are removed afterwards.
``teaching`` is who teaches whom: all the others, as in the paper; the ``deepest`` alone, which is
``byot``; or the ``ensemble``, the mean of the others' probabilities.
The end's own lessons weigh a tenth of an exit's by default: exits begin with random weights, and
would pull a student that has learned already towards them.
No code is public, and only the abstract could be read: the terms are its words, the constants
those of the author's code for ``byot``. The paper is about the accuracy at every exit, and places
exits by sampling; here exits serve the training of the whole network, and are not evaluated.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from segkd.methods.base import Context, Conversion, Weight, nearest
from segkd.methods.shared.exits import EXIT_TAPS, ExitKeys, ExitMethod
from segkd.ops.masked import position_mask
from segkd.ops.resize import common_size, reduce_valid
from segkd.ops.softmax_kl import pixel_kl
from segkd.structures import Batch, Outputs, Term

Teaching = Literal["all", "deepest", "ensemble"]
MaskAt = Callable[[int, int], Tensor]  # the mask (B, h, w) at a size

_KD, _FEATURE = 0.1, 0.1  # weights, as of `byot`
_END = 0.1  # of the end's own lessons: exits that have hardly learned yet teach it noise


def msd_loss(
    exits: Sequence[Tensor],
    deepest: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float = 3.0,
    teaching: Teaching = "all",
) -> Tensor:
    """Sum over classifiers of the mean over their teachers of T² · KL(teacher ‖ classifier).

    Args:
        exits: logits (B, K, h_e, w_e) of the exits.
        deepest: logits (B, K, h, w) at the network's end.
        mask: (B, h, w) bool at any size, True where pixels are valid, taken at each size by
            nearest neighbour: larger maps are averaged over their valid pixels. None: all.
        temperature: T.
        teaching: the teachers of a classifier: ``all`` others; the ``deepest``, which then learns
            nothing; or the ``ensemble`` of the others, compared at the smallest size of all.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no pixel is valid.
    """
    if mask is None:
        mask = position_mask(deepest, None)
    mask_at = partial(nearest, mask)
    lessons = _lessons([*exits, deepest], temperature, teaching, mask_at)
    values = [lesson.share * _term(lesson, mask_at, temperature).value for lesson in lessons]
    return sum(values, deepest.new_zeros(()))


@dataclass(frozen=True)
class _Lesson:
    """What a classifier learns from a teacher.

    Attributes:
        learner, teacher: indices of classifiers; ``teacher`` is None if there is only one.
        student: logits (B, K, h, w), at the smaller size of both.
        target: logits (B, K, h, w) of the teacher.
        share: 1 over the number of teachers.
    """

    learner: int
    teacher: int | None
    student: Tensor
    target: Tensor
    share: float = 1.0


def _lessons(
    classifiers: Sequence[Tensor], temperature: float, teaching: Teaching, mask_at: MaskAt
) -> Iterator[_Lesson]:
    """All lessons of a step; the last of ``classifiers`` is the deepest."""
    end = len(classifiers) - 1

    def at_one_size(*numbers: int) -> list[Tensor]:
        # Valid pixels alone: an exit knows nothing elsewhere.
        maps = [classifiers[number] for number in numbers]
        size = common_size(*maps)
        return [reduce_valid(each, mask_at(*each.shape[-2:]), size) for each in maps]

    for learner in range(end + 1):
        others = [number for number in range(end + 1) if number != learner]
        if teaching == "all":
            for other in others:
                student, target = at_one_size(learner, other)
                yield _Lesson(learner, other, student, target, share=1 / end)
        elif teaching == "ensemble":
            student, *targets = at_one_size(learner, *others)
            yield _Lesson(learner, None, student, _mixture(targets, temperature))
        elif learner != end:
            student, target = at_one_size(learner, end)
            yield _Lesson(learner, None, student, target)


def _term(lesson: _Lesson, mask_at: MaskAt, temperature: float) -> Term:
    """T² · KL(teacher ‖ classifier), a mean over valid pixels at the size of both."""
    mask = mask_at(*lesson.student.shape[-2:])
    value = pixel_kl(lesson.student, lesson.target, mask=mask, temperature=temperature)
    return Term(value, mask.sum(dtype=torch.float64))


def _mixture(teachers: Sequence[Tensor], temperature: float) -> Tensor:
    """Logits (B, K, h, w) whose softmax at T is the mean of the teachers'."""
    logs = torch.stack([(logits.detach() / temperature).log_softmax(1) for logits in teachers])
    return temperature * logs.logsumexp(0)


class MSDConfig(ExitKeys):
    """Keys of the method ``msd``."""

    weight: Weight = Field(1.0, description="factor of all terms; see docs/weights.md")
    teaching: Teaching = Field(
        "all",
        description="who teaches a classifier: all others, the deepest (as byot), or the ensemble "
        "of the others",
    )


def _default_weights(taps: Sequence[str], teaching: Teaching) -> dict[str, float]:
    """By term; a classifier with several teachers has one term for each of them."""
    weights = {f"feature_{tap}": _FEATURE for tap in taps}
    names = [*taps, "logits"]

    def share(learner: str) -> float:
        return _KD * _END if learner == "logits" else _KD

    if teaching == "all":
        pairs = [(one, other) for one in names for other in names if one != other]
        return weights | {f"kd_{one}_{other}": share(one) / len(taps) for one, other in pairs}
    learners = names if teaching == "ensemble" else taps
    return weights | {f"kd_{one}": share(one) for one in learners}


class MSD(ExitMethod[MSDConfig]):
    """Terms per exit: the task losses, and ``feature_TAP``; per pair ``kd_LEARNER_TEACHER``.

    The network's end is called ``logits``. With one teacher a learner's term is ``kd_LEARNER``.
    """

    name = "msd"
    kind = "self"
    scale_free = False  # 3x3 convolutions
    paper = "Luan et al.: MSD: Multi-Self-Distillation Learning, arXiv 1911.09418"
    year = 2019
    equation = (
        "Σ_exits task(z_e) + λ mean (F_e − F_end)² + α T² Σ_c mean_d mean_pixels KL(p_d ‖ p_c)"
    )
    cost = "per exit a 3x3 convolution to the head's channels and the task loss; KL of all pairs"
    default_weights: Mapping[str, float] = _default_weights(EXIT_TAPS, "all")
    conversions: ClassVar = {
        "BYOT, of the same author": Conversion(
            0.1, note="T 3, all `weights.kd_…` of a learner; MSD itself has no public code"
        )
    }

    def _use(self, taps: list[str]) -> None:
        super()._use(taps)
        self.default_weights = _default_weights(taps, self.config.teaching)

    @property
    def taps_with_gradient(self) -> tuple[str, ...]:
        end = () if self.config.teaching == "deepest" else ("logits",)
        return (*self.taps, *end)

    def self_loss(self, student: Outputs, batch: Batch, context: Context) -> dict[str, Term]:
        terms: dict[str, Term] = {}
        classifiers: dict[str, Tensor] = {}
        for branch in self.outputs(student, batch, context):
            terms |= {f"{name}_{branch.tap}": term for name, term in branch.task.items()}
            terms[f"feature_{branch.tap}"] = branch.feature
            classifiers[branch.tap] = branch.logits
        classifiers["logits"] = student.logits
        names, degrees, mask_at = list(classifiers), self.config.temperature, context.mask_at
        lessons = _lessons(list(classifiers.values()), degrees, self.config.teaching, mask_at)
        for lesson in lessons:
            name = f"kd_{names[lesson.learner]}"
            if lesson.teacher is not None:
                name += f"_{names[lesson.teacher]}"
            terms[name] = _term(lesson, mask_at, degrees)
        return terms
