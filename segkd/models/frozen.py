"""What can be a teacher: a frozen network, or a black box; and the mean of several."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkd.methods.base import TapInfo, nearest
from segkd.models.box_outputs import outputs_of, shares_of
from segkd.models.class_map import (
    FLOOR,
    USUAL,
    LeftOver,
    counted,
    log_shares,
    mapped,
    safe_log,
    unknown_to,
)
from segkd.models.network import Network
from segkd.structures import Outputs


@dataclass(frozen=True)
class TappedNetwork:
    """Facts about the tapped values of a network, for ``Method.build``.

    Attributes:
        info: channels and stride by tap.
        norm_before: see ``BuildContext``.
    """

    info: Mapping[str, TapInfo]
    norm_before: Callable[[str], nn.Module | None] = lambda tap: None


def tapped(network: Network, taps: Sequence[str]) -> TappedNetwork:
    """The facts about some taps of a network. Raises ConfigError for an unknown tap."""
    info = network.tap_info(taps)
    return TappedNetwork(info, network.norm_before)


class Frozen(nn.Module):
    """A module that stays in eval mode: ``train()`` has no effect."""

    def train(self, mode: bool = True) -> Self:
        return self


class Teacher(Frozen):
    """A frozen network that returns ``taps``, without gradient.

    Args:
        network: is set to eval mode, and its parameters no longer require gradients.
        taps: values to return besides the logits.
        half: dtype of autocast; None: fp32, also within an autocast of the run.
        channels_last: memory format of weights and images; None: channels-last on CUDA.
        gradient: keep the autograd graph from the images on, for methods that differentiate the
            teacher's outputs with respect to its features. Parameters stay frozen.
        class_map: (K, K') of ``class_map.class_matrix``: the network has K' classes, and the
            outputs are log-probabilities of K classes.
        left_over: what is done about classes without a counterpart.

    Attributes:
        num_classes: K.
        unknown: ids of classes of the data that it cannot know.
        about_classes: text about the class map, for the log; empty without one.
        class_facts: the class map as plain data, for the summary; empty without one.
        not_evaluated: why it is not scored before the training; empty if it is.
    """

    class_map: Tensor | None
    left_over: LeftOver | None
    unknown: tuple[int, ...]

    def __init__(
        self,
        network: Network,
        taps: Collection[str] = (),
        *,
        half: torch.dtype | None = None,
        channels_last: bool | None = None,
        gradient: bool = False,
        class_map: Tensor | None = None,
        left_over: LeftOver = USUAL,
    ) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.training = False
        self.taps, self.dtype, self.gradient = tuple(sorted(taps)), half, gradient
        self.channels_last = channels_last
        if channels_last:
            network.to(memory_format=torch.channels_last)
        self.num_classes, self.divisor = network.num_classes, network.divisor
        self.about_classes = ""
        self.class_facts: Mapping[str, Any] = {}
        self.not_evaluated = "" if network.has_classes else "it has no classes"
        self.register_buffer("class_map", class_map, persistent=False)
        self.left_over, self.unknown = None, ()
        if class_map is not None:
            self.num_classes, self.unknown = len(class_map), unknown_to(class_map)
            if not class_map.bool().any(0).all():
                self.left_over = left_over

    @property
    def kind(self) -> Literal["logits", "log_prob"]:
        """What it returns, as of ``Outputs``."""
        return self.network.kind if self.class_map is None else "log_prob"

    def forward(self, images: Tensor) -> Outputs:
        """Outputs for images (B, 3, H, W) uint8."""
        last = self.channels_last
        if last or (last is None and images.is_cuda):
            images = images.contiguous(memory_format=torch.channels_last)
        elif last is False:
            images = images.contiguous()
        gradient = self.gradient and torch.is_grad_enabled()  # evaluation needs none
        if gradient:
            images = images.float().requires_grad_()
        autocast: AbstractContextManager = nullcontext()
        if not images.is_meta:  # on meta, only operations are counted
            half = self.dtype is not None
            autocast = torch.autocast(images.device.type, self.dtype, enabled=half)
        # Not inference mode: its tensors cannot be part of a training graph.
        with torch.set_grad_enabled(gradient):
            with autocast:
                outputs = self.network(images, self.taps)
            if self.class_map is None:
                return outputs
            rule = self.left_over
            with _without_autocast(images):  # of the run: in half, small shares would be 0
                shares = outputs.logits.float().softmax(1)
                logits = log_shares(mapped(shares, self.class_map))
                known = None if rule is None else counted(shares, self.class_map, rule)
        return replace(outputs, logits=logits, kind="log_prob", known=known, unknown=self.unknown)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        on_cuda = any(parameter.is_cuda for parameter in self.network.parameters())
        if on_cuda and self.channels_last is not False:
            for parameter in self.network.parameters():
                if parameter.ndim == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        return self


def _without_autocast(images: Tensor) -> AbstractContextManager:
    """Full precision, also within an autocast; on meta, where there is none, nothing."""
    if images.is_meta:
        return nullcontext()
    return torch.autocast(images.device.type, enabled=False)


class BlackBox(Frozen):
    """A teacher that only returns predictions, e.g. a remote service.

    Args:
        answer: takes images (B, 3, H, W) uint8, returns probabilities (B, K, h, w), or class ids
            (B, h, w) of an integer type, 255 or -1 where nothing is known.
        num_classes: K.
        stride: H / h; finer predictions are averaged.

    Attributes:
        num_classes: K, or after ``map_classes`` that of the data.
        own_classes: number of classes of what ``answer`` returns.
        own_unknown: ids of those that it cannot know, as stored predictions of a teacher of other
            classes say.
        left_over: what is done about its classes without a counterpart in the data.
        about_classes: text about the classes, for the log; may be empty.
        class_facts: as of ``Teacher``.
        not_evaluated: why it is not scored before the training; empty if it is.
    """

    class_map: Tensor | None

    def __init__(self, answer: Callable[[Tensor], Any], num_classes: int, stride: int = 1) -> None:
        super().__init__()
        self.training = False
        self.answer, self.stride, self.divisor = answer, stride, 1
        self.num_classes = self.own_classes = num_classes
        self.own_unknown: tuple[int, ...] = ()
        self.about_classes = self.not_evaluated = ""
        self.class_facts: Mapping[str, Any] = {}
        self.left_over = USUAL
        self.register_buffer("class_map", None, persistent=False)

    @property
    def unknown(self) -> tuple[int, ...]:
        """Ids of classes of the data that it cannot know."""
        if self.class_map is None:
            return self.own_unknown
        return unknown_to(
            self.class_map.index_fill(1, self.class_map.new_tensor(self.own_unknown).long(), 0)
        )

    def map_classes(self, matrix: Tensor, left_over: LeftOver | None = None) -> None:
        """Maps its classes to those of the data.

        Args:
            matrix: (K, K') of ``class_map.class_matrix``, or of a reordering; K' are the classes
                of what it returns so far.
            left_over: what is done about classes without a counterpart; None: as before.
        """
        before = self.class_map
        self.class_map = matrix if before is None else matrix @ before
        self.num_classes, self.left_over = len(matrix), left_over or self.left_over

    @torch.no_grad()
    def forward(self, images: Tensor) -> Outputs:
        """Outputs with ``kind="log_prob"`` for images (B, 3, H, W) uint8.

        Raises:
            SegKDError: ``answer`` does not return predictions.
        """
        found = shares_of(self.answer(images), images, self.own_classes, self.stride)
        return outputs_of(
            found, class_map=self.class_map, left_over=self.left_over, unknown=self.unknown
        )


def average(parts: list[Outputs]) -> Outputs:
    """The mean of distributions as log-probabilities, at the element-wise smallest (h, w).

    A class that some parts do not know has the probability of the others, see ``completed``.
    Existence, if all parts have it, is the logit of the mean probability.

    Args:
        parts: with logits or log-probabilities (B, K, h_i, w_i); at least one.
    """
    height, width = (min(part.logits.shape[axis] for part in parts) for axis in (2, 3))
    pooled = completed(reduced(parts, (height, width)), parts)
    total = sum(pooled[1:], pooled[0])
    exist = None
    existing = [part.exist for part in parts if part.exist is not None]
    if len(existing) == len(parts):
        chances = torch.stack([logits.float().sigmoid() for logits in existing])
        exist = chances.mean(0).logit(eps=1e-6)  # 1 - 1e-8 is 1 in float32
    return Outputs(
        safe_log(total / len(parts)),
        exist=exist,
        kind="log_prob",
        known=_known_to_all(parts, (height, width)),
        tail=_mean_tail(parts, (height, width)),
        unknown=_unknown_to_all(parts),
    )


def _known_to_all(parts: list[Outputs], size: tuple[int, int]) -> Tensor | None:
    found = [nearest(part.known, *size) for part in parts if part.known is not None]
    return torch.stack(found).all(0) if found else None


def _mean_tail(parts: list[Outputs], size: tuple[int, int]) -> Tensor | None:
    tails = [F.adaptive_avg_pool2d(part.tail, size) for part in parts if part.tail is not None]
    return sum(tails[1:], tails[0]) / len(parts) if tails else None


def reduced(parts: Sequence[Outputs], size: tuple[int, int]) -> list[Tensor]:
    """Probabilities (B, K, h, w) of each part at a size, float32 or wider."""
    # The softmax of log-probabilities are the probabilities.
    every = [part.logits for part in parts]
    shares = (z.to(torch.promote_types(z.dtype, torch.float32)).softmax(1) for z in every)
    return [F.adaptive_avg_pool2d(share, size) for share in shares]


def completed(shares: Sequence[Tensor], parts: Sequence[Outputs]) -> list[Tensor]:
    """Probabilities of each part, with those of the others for classes that it does not know.

    Such a class has the mean probability of the parts that know it; the rest is divided among the
    part's own classes in their proportions.

    Args:
        shares: (B, K, h, w) each, of ``reduced``.
        parts: its argument.

    Returns:
        The same shapes.
    """
    left = {number for part in parts for number in part.unknown} - {*_unknown_to_all(parts)}
    pairs = list(zip(shares, parts, strict=True))
    means = {
        number: torch.stack([p[:, number] for p, part in pairs if number not in part.unknown])
        for number in left
    }
    return [
        _completed(p, {n: means[n].mean(0) for n in part.unknown if n in left}) for p, part in pairs
    ]


def _completed(shares: Tensor, means: Mapping[int, Tensor]) -> Tensor:
    """``shares`` with ``means`` at some classes, and the rest scaled to the same sum."""
    if not means:
        return shares
    numbers = list(means)
    taken = torch.stack(list(means.values()), 1)
    found = shares.clone()
    found[:, numbers] = 0
    rest = (1 - taken.sum(1, keepdim=True)).clamp_min(0)
    found = found * (rest / found.sum(1, keepdim=True).clamp_min(FLOOR))
    found[:, numbers] = taken
    return found


def _unknown_to_all(parts: Sequence[Outputs]) -> tuple[int, ...]:
    return tuple(sorted(set.intersection(*({*part.unknown} for part in parts))))
