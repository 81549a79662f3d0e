"""Cases for the contract: any method on random outputs that fit what it declares to need."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
import toys
from pydantic import Field
from torch import Tensor

from segkd import registry
from segkd.methods.base import BuildContext, Context, Method, MethodConfig, TapInfo
from segkd.methods.cirkd import CIRKD
from segkd.methods.cwd import CWD
from segkd.methods.holistic import Holistic
from segkd.methods.ld import LD
from segkd.methods.rkd import RKD
from segkd.runtime import Runtime, generator
from segkd.structures import Batch, Outputs, Term

IGNORE = 255
CELL = 32  # labels and masks are constant in cells of the largest stride
SIZE = (2 * CELL, 3 * CELL)
STRIDES = {"stage1": 2, "stage2": 4, "stage3": 8, "stage4": 16, "stage5": 32, "head": 4}


class FeatureCWD(CWD):
    """CWD with an adapter, which its default Config does not need."""

    name = "cwd_features"

    class Config(CWD.Config):
        tap: str = "stage4"


class AnchoredCIRKD(CIRKD):
    """CIRKD with sampled anchors and its second version's channel term."""

    name = "cirkd_anchors"
    scale_free = False  # other positions are drawn from a larger map

    class Config(CIRKD.Config):
        anchors: int = 2
        weights: dict[str, float] = Field({"channel": 1.0})


class HingeCritic(Holistic):
    """The critic with hinge and spectral norm."""

    name = "holistic_hinge"

    class Config(Holistic.Config):
        loss: str = "hinge"


class GridRKD(RKD):
    """Relations of patches, which need no labels."""

    name = "rkd_grid"

    class Config(RKD.Config):
        nodes: str = "grid"
        grid: tuple[int, int] = (2, 3)


class PositionLD(LD):
    """Rows with the distance of expected columns as well."""

    name = "ld_position"

    class Config(LD.Config):
        weights: dict[str, float] = Field({"position": 1.0})


VARIANTS = (FeatureCWD, AnchoredCIRKD, HingeCritic, GridRKD, PositionLD)


def all_methods() -> dict[str, type[Method]]:
    """Every registered method, variants that no default Config reaches, and the toys."""
    return {method.name: method for method in (*registry.methods, *VARIANTS, *toys.METHODS)}


@dataclass
class Case:
    """A built method and what it is run on. Outputs are leaves, those of the teacher as well."""

    method: Method
    student: Outputs
    teacher: Outputs | None
    batch: Batch
    runtime: Runtime = field(default_factory=Runtime.single)

    def context(self, batch: Batch) -> Context:
        seeds = ("contract", self.method.name)
        return Context(
            batch=batch,
            step=1,
            total_steps=10,
            mask=self.method.config.mask,
            generator=generator(*seeds),
            image_generators=[generator(*seeds, index) for index in batch.index.tolist()],
            task_loss=task_loss,
            gather=self.runtime.gather,
            all_sum=self.runtime.all_sum,
        )

    def prepared(self) -> tuple[Batch, Context]:
        batch = self.method.prepare(self.batch, self.context(self.batch))
        return batch, self.context(batch)

    def terms(self) -> dict[str, Term]:
        return self.method.loss(self.student, self.teacher, *self.prepared())

    def own_terms(self) -> dict[str, Term]:
        teacher = None if self.teacher is None else self.teacher.detach()
        return self.method.inner_loss(self.student.detach(), teacher, *self.prepared())

    @torch.no_grad()
    def after_step(self) -> None:
        self.method.after_step(self.student, self.teacher, *self.prepared())

    def each(self, change: Callable[[Tensor], Tensor], **others) -> "Case":
        """The same method on changed outputs; ``others`` replace further fields."""
        teacher = None if self.teacher is None else _map_outputs(self.teacher, change)
        student = _map_outputs(self.student, change)
        return replace(self, student=student, teacher=teacher, **others)

    def features_times(self, factor: float) -> "Case":
        """The same case with the features of both sides, but no logits, multiplied."""
        sides = [
            None
            if outputs is None
            else replace(
                outputs,
                features={
                    name: (factor * value.detach()).requires_grad_()
                    for name, value in outputs.features.items()
                },
            )
            for outputs in (self.student, self.teacher)
        ]
        return replace(self, student=sides[0], teacher=sides[1])

    def images(self, part: slice | Tensor) -> "Case":
        """The same case with a part of its images."""
        batch = self.batch
        labels = None if batch.labels is None else batch.labels[part]
        return self.each(
            lambda x: x[part],
            batch=batch.replace(
                images=batch.images[part],
                labels=labels,
                not_padding=batch.not_padding[part],
                index=batch.index[part],
                extra={key: value[part] for key, value in batch.extra.items()},
            ),
        )

    def leaves(self) -> dict[str, Tensor]:
        """The student's values by tap."""
        return {"logits": self.student.logits, **self.student.features}


def make_case(
    method_class: type[Method],
    *,
    images: int = 4,
    classes: int = 5,
    equal: bool = False,
    dtype: torch.dtype = torch.float32,
    config: MethodConfig | None = None,
    feature_scale: float = 1.0,
) -> Case:
    """The method with this or its default Config, built for random outputs, its banks filled once.

    ``feature_scale`` multiplies the features of both sides, but no logits. With ``equal`` all
    taps of both sides have one stride; else both sides differ at most taps.
    """
    torch.manual_seed(0)
    method = method_class(config or method_class.Config())
    strides = (lambda stride: 8, lambda stride: 8) if equal else (int, lambda s: min(2 * s, 8))
    student = _tap_infos(method.needs.student, 3, classes, strides[0])
    teacher = _tap_infos(method.needs.teacher, 6, classes, strides[1])
    method.build(BuildContext(student, teacher, classes, dataset_size=100))
    case = Case(
        method.to(dtype),
        _outputs(student, images, dtype, "student"),
        _outputs(teacher, images, dtype, "teacher") if method.needs.teacher else None,
        make_batch(images, classes),
    )
    if feature_scale != 1:
        case = case.features_times(feature_scale)
    case.after_step()
    return case


def make_batch(images: int, classes: int) -> Batch:
    """Each image with its own number of void and padded cells; the first and last without.

    All classes but the first exist as lanes in the first image, and one less in each after it.
    """
    draw = generator("batch")
    cells = torch.randint(classes, (images, SIZE[0] // CELL, SIZE[1] // CELL), generator=draw)
    labels = upsampled(cells, CELL)
    inside = torch.ones_like(labels, dtype=torch.bool)
    for image in range(1, images - 1):
        inside[image, :, : CELL * (image % 3)] = False
        labels[image, :CELL, 2 * CELL :] = IGNORE
    pixels = torch.randint(256, (images, 3, *SIZE), generator=draw, dtype=torch.uint8)
    exist = (torch.arange(1, classes) < classes - torch.arange(images)[:, None]).float()
    return Batch(pixels, labels, inside, torch.arange(images), extra={"exist": exist})


def upsampled(values: Tensor, factor: int) -> Tensor:
    """Nearest neighbour along the last two axes, any dtype."""
    return values.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def task_loss(outputs: Outputs, batch: Batch) -> dict[str, Term]:
    """Cross-entropy at the resolution of the logits."""
    labels = Context(batch).labels_at(*outputs.logits.shape[-2:])
    total = F.cross_entropy(outputs.logits, labels, ignore_index=IGNORE, reduction="sum")
    count = (labels != IGNORE).sum(dtype=torch.float64)
    return {"cross_entropy": Term(total / count.clamp(min=1).to(total.dtype), count)}


def measure(case: Case, steps: int = 2) -> dict[str, Tensor]:
    """Values, gradients and state of some steps, reduced over processes as the engine does."""
    found: dict[str, Tensor] = {}
    own = {id(parameter) for parameter in case.method.inner_parameters()}
    for step in range(steps):
        _backward(case, case.terms(), found, f"{step}/")
        for name, leaf in case.leaves().items():
            gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            found[f"{step}/student.{name}"] = case.runtime.gather(gradient) / case.runtime.world
        others = [p for p in case.method.named_parameters() if id(p[1]) not in own]
        _collect(case, others, found, f"{step}/")
        if own:
            case.method.zero_grad()
            _backward(case, case.own_terms(), found, f"{step}/own_")
            _collect(case, case.method.named_parameters(), found, f"{step}/own_")
        case.method.zero_grad()
        case = case.each(lambda x: x)
        case.after_step()
    found |= {f"state.{name}": value for name, value in case.method.state_dict().items()}
    return {name: value.detach().cpu() for name, value in found.items()}


def _backward(case: Case, terms: dict[str, Term], found: dict[str, Tensor], prefix: str) -> None:
    total = 0
    for name, term in terms.items():
        factor = 1.0
        if term.count is not None:
            everywhere = case.runtime.all_reduce(term.count).clamp(min=1e-300)
            factor = (term.count / everywhere).to(term.value.dtype) * case.runtime.world
        total = total + term.value * factor
        reduced = case.runtime.all_reduce(term.value.detach() * factor)
        found[prefix + name] = reduced / case.runtime.world
    total.backward()


def _collect(case: Case, parameters: Iterable, found: dict[str, Tensor], prefix: str) -> None:
    for name, parameter in parameters:
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        found[prefix + name] = case.runtime.all_reduce(gradient) / case.runtime.world


def _tap_infos(
    taps: Iterable[str], channels: int, classes: int, stride_of: Callable[[int], int]
) -> dict[str, TapInfo]:
    infos = {"logits": TapInfo(classes, stride_of(4))}
    for number, tap in enumerate(sorted(set(taps) - {"logits"})):
        stride = STRIDES.get(tap.removesuffix(":pre"), 8)
        infos[tap] = TapInfo(channels + number, stride_of(stride))
    return infos


def _outputs(infos: dict[str, TapInfo], images: int, dtype: torch.dtype, who: str) -> Outputs:
    values = {}
    for tap, info in infos.items():
        shape = (images, info.channels, SIZE[0] // info.stride, SIZE[1] // info.stride)
        draw = generator("outputs", who, tap)
        values[tap] = torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)
        values[tap].requires_grad_()
    return Outputs(values.pop("logits"), values)


def _map_outputs(outputs: Outputs, change: Callable[[Tensor], Tensor]) -> Outputs:
    def leaf(value: Tensor) -> Tensor:
        return change(value.detach()).clone().requires_grad_()

    features = {name: leaf(value) for name, value in outputs.features.items()}
    return Outputs(leaf(outputs.logits), features, kind=outputs.kind)
