"""What a method is told: taps of both networks when it is built, and the batch of each step."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkd.errors import DataError
from segkd.structures import Batch, Outputs, Term

PRE = ":pre"  # suffix of a tap: the value before the activation that made it
IMAGE = "image"  # tap of every network: its input, not yet normalised; a leaf with a gradient


@dataclass(frozen=True)
class Needs:
    """What a method requires.

    Attributes:
        student: taps of the student, named as in ``models.taps``.
        teacher: taps of the teacher; empty for methods without a teacher.
        labels: the method reads labels.
        inner_labels: it reads them in ``inner_loss`` alone: in ``loss`` all pixels of images
            without labels count, as for methods that read none.
        teacher_gradient: the teacher's outputs keep their graph, and the method differentiates
            outputs with respect to taps itself.
        min_classes: smallest number of classes that the method works with.
        accepts_log_prob: the teacher may output log-probabilities instead of logits.
        rewrites_batch: the method overrides ``prepare``.
        accepts_rows: it understands ``Outputs.rows``; else its logits are maps of the image.
    """

    student: tuple[str, ...] = ()
    teacher: tuple[str, ...] = ()
    labels: bool = False
    inner_labels: bool = False
    teacher_gradient: bool = False
    min_classes: int = 2
    accepts_log_prob: bool = False
    rewrites_batch: bool = False
    accepts_rows: bool = False

    def why_not_cached(self, taps: tuple[str, ...] | None = None) -> str:
        """Why the method cannot learn from stored outputs of a teacher; empty if it can.

        Args:
            taps: of the teacher; None: ``teacher``.
        """
        features = sorted(set(self.teacher if taps is None else taps) - {"logits"})
        if features:
            return f"needs the teacher's {', '.join(features)}, and only logits are stored"
        if self.teacher_gradient:
            return "differentiates the teacher's outputs, which stored numbers cannot be"
        if self.rewrites_batch:
            return "makes new images in each step, which have no stored outputs"
        return ""


@dataclass(frozen=True)
class TapInfo:
    """Shape of a tapped value: channels, and stride (the input size divided by its size)."""

    channels: int
    stride: int


@dataclass(frozen=True)
class TapNames:
    """The named taps of a network.

    Attributes:
        names: stages from shallow to deep, ``head``, ``logits``.
        has_pre: whether the value of a tap is the output of an activation, so that the value
            before the activation (``tap:pre``) can be tapped as well.
    """

    names: tuple[str, ...]
    has_pre: Callable[[str], bool] = lambda tap: True

    @property
    def stages(self) -> list[str]:
        """Names of the stages that exist (``stage1`` …), from shallow to deep."""
        found = [name for name in self.names if re.fullmatch(r"stage\d+", name)]
        return sorted(found, key=lambda name: int(name.removeprefix("stage")))


@dataclass(frozen=True)
class BuildContext:
    """What ``Method.build`` may need to know about both networks and the data.

    Attributes:
        student: shape of each tapped value of the student.
        teacher: shape of each tapped value of the teacher.
        num_classes: K.
        norm_before: the teacher's normalisation module right before the activation of a tap;
            None if there is none.
        new_model: ``new_model(config, key)`` builds another network with weights of its own, from
            keys as of ``student:``, or like the student (None). ``key`` is their place within the
            entry, for messages of its ConfigError.
        further: shape of each tapped value of the ``further_teachers``, by teacher.
    """

    student: Mapping[str, TapInfo]
    teacher: Mapping[str, TapInfo]
    num_classes: int
    _: KW_ONLY
    norm_before: Callable[[str], nn.Module | None] = lambda tap: None
    new_model: Callable[[Mapping[str, Any] | None, str], nn.Module] | None = None
    further: Mapping[str, Mapping[str, TapInfo]] = field(default_factory=dict)


@dataclass
class Context:
    """What one entry of ``methods:`` can use in one step.

    Attributes:
        batch: the images of this process.
        step: current step, from 0.
        total_steps: number of steps of the run.
        mask: the entry's ``mask`` key, see ``mask_at``.
        generator: CPU generator seeded by (seed, step, entry): the same on all processes.
        step_generator: the same, also in the method's other calls of the step.
        image_generators: CPU generators, one per image, seeded by the image's index as well. What
            the CPU draws is the same for all devices; ``ops.queued`` brings it there.
        task_loss: the task losses of a network's outputs, by name.
        student_forward: runs the student on further images (B, 3, H, W), in eval mode and without
            gradient.
        gather: concatenates dim 0 over all processes in rank order; lengths may differ. Its
            backward sums over processes.
        exchange: ``gather`` of several tensors at once, see ``gather_rows``; None: one by one.
        all_sum: sums over all processes; so does its backward.
        peers: by name, outputs of ``Method.peers`` with a graph; in ``loss`` only.
        rank: number of this process, from 0.
        world: number of processes.
        teachers: detached outputs of all teachers that are tapped, by name.
        preparing: ``loss`` is called in the phase of ``Method.preparation_steps``; only with
            ``Method.teaches_meanwhile``.
    """

    batch: Batch
    step: int = 0
    total_steps: int = 1
    mask: Literal["valid", "not_padding"] = "valid"
    generator: torch.Generator | None = None
    step_generator: torch.Generator | None = None
    image_generators: Sequence[torch.Generator] = ()
    task_loss: Callable[[Outputs, Batch], dict[str, Term]] | None = None
    student_forward: Callable[[Tensor], Outputs] | None = None
    gather: Callable[[Tensor], Tensor] = lambda x: x
    exchange: Callable[..., tuple[Tensor, ...]] | None = None
    all_sum: Callable[[Tensor], Tensor] = lambda x: x
    peers: Mapping[str, Outputs] = field(default_factory=dict)
    rank: int = 0
    world: int = 1
    teachers: Mapping[str, Outputs] = field(default_factory=dict)
    preparing: bool = False

    def gather_rows(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """``gather`` of tensors (N, …) with equally many rows, in one exchange."""
        if self.exchange is None:
            return tuple(map(self.gather, tensors))
        return self.exchange(*tensors)

    def mask_at(self, h: int, w: int) -> Tensor:
        """Valid positions, resized by nearest neighbour: (B, h, w) bool."""
        batch = self.batch
        not_padding = nearest(batch.not_padding, h, w)
        if self.mask != "valid" or batch.labels is None:
            return not_padding
        # Sampled before it is compared: at the stride of features there are far fewer pixels.
        return batch.replace(not_padding=not_padding, labels=nearest(batch.labels, h, w)).valid

    def labels_at(self, h: int, w: int) -> Tensor:
        """Labels, resized by nearest neighbour: (B, h, w) int64.

        Void pixels and padding are ``ignore_index``.

        Raises:
            DataError: the batch has no labels.
        """
        if self.batch.labels is None:
            raise DataError(
                "a method reads labels, but this batch has none. Use labelled images, or declare "
                "Needs(labels=True) in the method: the engine then supplies pseudo labels"
            )
        padding = ~nearest(self.batch.not_padding, h, w)
        return nearest(self.batch.labels, h, w).masked_fill(padding, self.batch.ignore_index)


def nearest(values: Tensor, h: int, w: int) -> Tensor:
    """Resizes (B, H, W) of any dtype to (B, h, w) as ``mode="nearest"`` does, without floats.

    Nothing waits for the device: the indices of each size are made once, and none are needed where
    every n-th row and column is taken.
    """
    height, width = values.shape[1:]
    if (height, width) == (h, w):
        return values
    if height % h == 0 and width % w == 0:
        return values[:, :: height // h, :: width // w].contiguous()
    places = _places if torch.compiler.is_compiling() else _kept_places
    rows, columns = places(height, h, values.device), places(width, w, values.device)
    return values[:, rows][:, :, columns]


def _places(size: int, target: int, device: torch.device) -> Tensor:
    """The index (target,) int64 of the nearest of ``size`` places for each of ``target``."""
    with torch.inference_mode(False):
        every = torch.arange(size, dtype=torch.float64)[None, None]
        index = F.interpolate(every, target, mode="nearest").flatten().long()
        return index.to(device, non_blocking=True)


_kept_places = lru_cache(maxsize=256)(_places)
