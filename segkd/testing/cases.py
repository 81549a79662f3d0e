"""A method on random outputs that fit what it declares to need: what the checks run it on."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol, TypedDict, Unpack, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkd.methods.base import IMAGE, BuildContext, Context, Method, MethodConfig, TapInfo
from segkd.ops.nodes import raised
from segkd.runtime import Runtime, generator
from segkd.structures import Batch, Outputs, Term
from segkd.testing.check import require

IGNORE = 255
CELL = 32  # labels and masks are constant in cells of the largest stride
SIZE = (2 * CELL, 3 * CELL)
STRIDES = {"stage1": 2, "stage2": 4, "stage3": 8, "stage4": 16, "stage5": 32, "head": 4}
EQUAL_STRIDE = 8
_PEER = "peer {}"


class Collectives(Protocol):
    """The collectives of ``segkd.runtime.Runtime``, of real or of simulated processes."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""

    @property
    def world(self) -> int:
        """Number of processes."""

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum over processes, of any shape, without gradient."""

    def all_sum(self, tensor: Tensor) -> Tensor:
        """Sum over processes, of any shape; the gradient is summed over processes, too."""

    def gather(self, tensor: Tensor) -> Tensor:
        """(n, …) of each process to (n_1 + n_2 + …, …), in rank order."""


class CaseChanges(TypedDict, total=False):
    """Fields of a ``Case`` that a copy may replace."""

    method: Method
    student: Outputs
    teacher: Outputs | None
    batch: Batch
    runtime: Collectives
    step: int
    total_steps: int
    peers: dict[str, Outputs]


class BatchChanges(TypedDict, total=False):
    """Annotations of a ``Batch`` that a copy may replace."""

    labels: Tensor | None
    not_padding: Tensor
    labelled: Tensor | None


class CaseOptions(TypedDict, total=False):
    """Arguments of ``make_case`` besides the method and its config."""

    images: int
    classes: int
    equal: bool
    channels: tuple[int, int]
    dtype: torch.dtype
    feature_scale: float
    fill: bool


@dataclass
class Case:
    """A built method and what it is run on. Outputs are leaves, those of the teacher as well.

    Attributes:
        method: built; its banks were filled once.
        student, teacher: outputs; the teacher's are None for a method that needs none.
        batch: images, labels, masks; as the method's ``prepare`` returned them.
        runtime: sums over processes.
        step, total_steps: what the context says.
        peers: outputs of the method's peers by name, logits alone.
    """

    method: Method
    student: Outputs
    teacher: Outputs | None
    batch: Batch
    runtime: Collectives = field(default_factory=Runtime.single)
    step: int = 1
    total_steps: int = 10
    peers: dict[str, Outputs] = field(default_factory=dict)

    def context(self, batch: Batch) -> Context:
        """The surroundings of a step; its generators begin anew with each call."""
        seeds = ("contract", self.method.name)
        return Context(
            batch=batch,
            step=self.step,
            total_steps=self.total_steps,
            mask=self.method.config.mask,
            generator=generator(*seeds),
            step_generator=generator(*seeds),
            image_generators=[generator(*seeds, index) for index in _indices(batch)],
            task_loss=task_loss,
            student_forward=self.forward,
            gather=self.runtime.gather,
            all_sum=self.runtime.all_sum,
            peers=self.peers,
            rank=self.runtime.rank,
            world=self.runtime.world,
        )

    @torch.no_grad()
    def forward(self, images: Tensor) -> Outputs:
        """What a student returns for images (B, 3, H, W): random mixtures of their colours."""
        values = {}
        for tap, leaf in self.leaves().items():
            mixture = torch.randn(leaf.shape[1], 3, generator=generator("forward", tap))
            mixture = mixture.to(leaf, non_blocking=True)
            size = leaf.shape[-2], leaf.shape[-1]
            colours = F.adaptive_avg_pool2d(images.to(leaf.dtype) / 255, size)
            values[tap] = torch.einsum("kc,bchw->bkhw", mixture, colours)
        return Outputs(values.pop("logits"), values)

    def terms(self) -> dict[str, Term]:
        """The terms of the student's step."""
        student, teacher = self.student, self.teacher
        if self.method.needs.teacher_gradient:
            student, teacher = _connected(student), teacher and _connected(teacher)
        return self.method.loss(student, _targets(teacher), self.batch, self.context(self.batch))

    def inner_terms(self) -> dict[str, Term]:
        """The terms that train the method's own parameters, on detached outputs."""
        teacher = None if self.teacher is None else self.teacher.detach()
        return self.method.inner_loss(
            self.student.detach(), _targets(teacher), self.batch, self.context(self.batch)
        )

    @torch.no_grad()
    def after_step(self) -> None:
        """What the method does after the student's step."""
        self.method.after_step(
            self.student, _targets(self.teacher), self.batch, self.context(self.batch)
        )

    @property
    def taps_with_gradient(self) -> tuple[str, ...]:
        """Taps of the student, and peers, that get a gradient."""
        return (*self.method.taps_with_gradient, *map(_PEER.format, self.peers))

    @property
    def inner(self) -> list[nn.Parameter]:
        """Parameters that ``inner_terms`` trains."""
        return self.method.inner_parameters()

    def leaves(self) -> dict[str, Tensor]:
        """The student's values by tap, and the logits of ``peer NAME``."""
        peers = {_PEER.format(name): one.logits for name, one in self.peers.items()}
        return {"logits": self.student.logits, **self.student.features, **peers}

    # -- the same with a change ----------------------------------------------------------------

    def each(self, change: Callable[[Tensor], Tensor], **others: Unpack[CaseChanges]) -> "Case":
        """A copy of the method on outputs changed by ``change``, which takes tensors of any shape.

        ``others`` replace further fields.

        A copy, since a loss may keep running means in buffers.
        """
        parts: CaseChanges = {
            "method": copy.deepcopy(self.method),
            "student": map_outputs(self.student, change),
            "teacher": None if self.teacher is None else map_outputs(self.teacher, change),
            "peers": {name: map_outputs(one, change) for name, one in self.peers.items()},
        }
        parts.update(others)
        return replace(self, **parts)

    def fresh(self, **others: Unpack[CaseChanges]) -> "Case":
        """A copy of the method on the same outputs; ``others`` replace further fields."""
        return self.each(lambda x: x, **others)

    def features_times(self, factor: float) -> "Case":
        """The same case with the features of both sides, but no logits, multiplied."""

        def scaled(outputs: Outputs) -> Outputs:
            return replace(outputs, features=_leaves(outputs.features, factor))

        teacher = None if self.teacher is None else scaled(self.teacher)
        return replace(self, student=scaled(self.student), teacher=teacher)

    def images(self, part: slice | Tensor) -> "Case":
        """The same case with a part of its images: a slice, or indices (n,)."""
        return self.each(lambda x: x[part], batch=map_batch(self.batch, lambda x: x[part]))

    def with_batch(self, **changes: Unpack[BatchChanges]) -> "Case":
        """The same case with changed fields of its batch, on new leaves."""
        return self.fresh(batch=self.batch.replace(**changes))

    def with_config(self, **changes: object) -> "Case":
        """The same case whose method, as it is, has other keys; they are not validated."""
        method = copy.deepcopy(self.method)
        method.config = method.config.model_copy(update=changes)
        return self.fresh(method=method)


def make_case(
    method_class: type[Method],
    *,
    images: int = 4,
    classes: int = 5,
    equal: bool = False,
    channels: tuple[int, int] = (3, 6),
    dtype: torch.dtype = torch.float32,
    config: MethodConfig | None = None,
    feature_scale: float = 1.0,
    fill: bool = True,
) -> Case:
    """The method with this or its default Config, built for random outputs, its banks filled once.

    The outputs are those of the batch that ``prepare`` returns.

    Args:
        method_class: its class.
        images: B, before ``prepare``.
        classes: K.
        equal: all taps of both sides have one stride; else both sides differ at most taps.
        channels: of the student's and of the teacher's first tap; each further one has one more.
        dtype: of all outputs and of the method's parameters.
        config: of the method; None: the default one.
        feature_scale: multiplies the features of both sides, but no logits.
        fill: call ``after_step`` once.

    Raises:
        ConfigError: the method refuses what it was given.
    """
    torch.manual_seed(0)
    method = method_class(config or method_class.Config())
    same = (lambda stride: EQUAL_STRIDE,) * 2
    strides = same if equal else (int, lambda s: min(2 * s, EQUAL_STRIDE))
    student = _tap_infos(method.needs.student, channels[0], classes, strides[0])
    teacher = _tap_infos(method.needs.teacher, channels[1], classes, strides[1])
    method.build(BuildContext(student, teacher, classes, new_model=_without_layers))
    method.to(dtype)
    strides_of_peers = strides[1](STRIDES["stage2"])
    peers = {name: {"logits": TapInfo(classes, strides_of_peers)} for name in method.peers()}

    def on(batch: Batch) -> Case:
        count = len(batch)
        other = _outputs(teacher, count, dtype, "teacher") if method.needs.teacher else None
        beside = {name: _outputs(infos, count, dtype, name) for name, infos in peers.items()}
        return Case(method, _outputs(student, count, dtype, "student"), other, batch, peers=beside)

    case = on(make_batch(images, classes))
    if method.needs.rewrites_batch:
        case = on(method.prepare(case.batch, case.context(case.batch)))
    if feature_scale != 1:
        case = case.features_times(feature_scale)
    if fill:
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


def labels_of(batch: Batch) -> Tensor:
    """The labels (B, H, W) of a batch that has some, as that of a new case does."""
    assert batch.labels is not None
    return batch.labels


def total(values: Iterable[Tensor]) -> Tensor:
    """The sum of at least one 0-d value of a term."""
    parts = list(values)
    require(bool(parts), "there are no terms")
    return sum(parts[1:], parts[0])


def backward(values: Iterable[Tensor]) -> None:
    """One backward pass from the sum of 0-d values of terms."""
    total(values).backward()  # type: ignore[no-untyped-call]  # torch's is unannotated


def upsampled(values: Tensor, factor: int) -> Tensor:
    """(…, h, w) to (…, factor·h, factor·w) by nearest neighbour, any dtype."""
    return values.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def task_loss(outputs: Outputs, batch: Batch) -> dict[str, Term]:
    """Cross-entropy at the resolution of the logits."""
    labels = Context(batch).labels_at(*outputs.logits.shape[-2:])
    total = F.cross_entropy(outputs.logits, labels, ignore_index=IGNORE, reduction="sum")
    count = (labels != IGNORE).sum(dtype=torch.float64)
    return {"cross_entropy": Term(total / count.clamp(min=1).to(total.dtype), count)}


def map_outputs(outputs: Outputs, change: Callable[[Tensor], Tensor]) -> Outputs:
    """Outputs changed by ``change``, which takes tensors of any shape, as new leaves."""
    return outputs.map(lambda value: change(value.detach()).clone().requires_grad_())


def map_batch(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """``change(tensor)`` of every tensor of a batch."""
    return batch.replace(
        images=change(batch.images),
        labels=None if batch.labels is None else change(batch.labels),
        not_padding=change(batch.not_padding),
        index=change(batch.index),
        extra={key: change(value) for key, value in batch.extra.items()},
        labelled=None if batch.labelled is None else change(batch.labelled),
    )


def _connected(outputs: Outputs) -> Outputs:
    """The same outputs, whose logits depend on all features as those of a network do.

    Logits are multiplied by a bent mean over the channels at their position, so that what a method
    differentiates can be differentiated once more.
    """
    height, width = outputs.logits.shape[-2:]
    logits = raised(outputs.logits)
    features = {
        tap: value if value.requires_grad else value.detach().requires_grad_()
        for tap, value in outputs.features.items()
    }
    for value in features.values():
        bent = raised(value).tanh().mean(dim=1, keepdim=True)
        logits = logits * (1 + F.adaptive_avg_pool2d(bent, (height, width)))
    return replace(outputs, logits=logits, features=features)


def _without_layers(config: object, key: str = "") -> nn.Module:
    """Stands for a peer, whose outputs are random."""
    return nn.Identity()


def _targets(teacher: Outputs | None) -> Outputs:
    """The teacher's outputs, as the engine passes them.

    A method without a teacher gets None, against the type, and does not read it.
    """
    return cast("Outputs", teacher)


def _leaves(features: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    return {n: (factor * value.detach()).requires_grad_() for n, value in features.items()}


def _indices(batch: Batch) -> list[int]:
    """The position of each image in its dataset; on a device without numbers that in the batch."""
    return list(range(len(batch))) if batch.index.is_meta else batch.index.tolist()


def _tap_infos(
    taps: Iterable[str], channels: int, classes: int, stride_of: Callable[[int], int]
) -> dict[str, TapInfo]:
    infos = {"logits": TapInfo(classes, stride_of(4))}
    for number, tap in enumerate(sorted(set(taps) - {"logits"})):
        if tap == IMAGE:  # the same for all networks
            infos[tap] = TapInfo(3, 1)
            continue
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
