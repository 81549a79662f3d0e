"""The data of a training step: Batch, Outputs of a network, Terms of a loss.

Letters, the same in the whole package: B batch, K classes, C channels, H W input size,
h w feature size, N = h·w positions, M nodes or bank entries, L lanes.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass
class Batch:
    """Images and their annotations.

    Attributes:
        images: (B, 3, H, W) uint8 RGB; networks normalise on the device.
        labels: (B, H, W) int64 class ids or ``ignore_index``; None for unlabelled data. A loader's
            are uint8 where the ids fit, until ``to`` makes them int64 on the device.
        labelled: (B,) bool, False for images without labels, whose ``labels`` are void; None: all
            images are labelled.
        not_padding: (B, H, W) bool, False on crop padding.
        index: (B,) int64, position of each image in its dataset. It stays on the host, where random
            numbers are drawn by it.
        ignore_index: the label of void pixels.
        extra: further tensors of a task, first axis B. Lane datasets: ``exist`` (B, L) float32, 1
            if a slot has a lane, and in training ``lanes`` (B, L, P, 2) float32, points x, y in
            pixels of the image, padded with NaN. Stored predictions of teachers, see
            ``data.prediction_crops``.
    """

    images: Tensor
    labels: Tensor | None
    not_padding: Tensor
    index: Tensor
    ignore_index: int = 255
    extra: dict[str, Tensor] = field(default_factory=dict)
    labelled: Tensor | None = None

    @property
    def inside(self) -> Tensor:
        """(B, H, W) bool: ``not_padding`` by its name of version 0.1, for other packages."""
        return self.not_padding

    @property
    def valid(self) -> Tensor:
        """Valid pixels, neither padding nor void: (B, H, W) bool.

        An image without labels has no void pixels; task losses skip it by its labels.
        """
        if self.labels is None:
            return self.not_padding
        known = self.labels != self.ignore_index
        if self.labelled is not None:
            known = known | ~self.labelled[:, None, None]
        return self.not_padding & known

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device, but for ``index``, with labels as int64.

        Copies from pinned memory are asynchronous.
        """
        here = self.replace(index=self.index[:0])  # is not moved: not even to be thrown away
        moved = here._map(lambda tensor: tensor.to(device, non_blocking=True))
        labels = None if moved.labels is None else moved.labels.long()
        return moved.replace(index=self.index, labels=labels)

    def pin_memory(self) -> "Batch":
        """The batch in pinned memory; called by torch's DataLoader."""
        return self._map(lambda tensor: tensor.pin_memory())

    def tensors(self) -> list[Tensor]:
        """All tensors, in the shapes above."""
        some = [part for part in (self.labels, self.labelled) if part is not None]
        return [self.images, *some, self.not_padding, self.index, *self.extra.values()]

    def replace(self, **changes: Any) -> "Batch":
        """A copy with other values of some attributes."""
        return dataclasses.replace(self, **changes)

    def part(self, images: slice) -> "Batch":
        """The batch of some of its images."""
        return self._map(lambda tensor: tensor[images])

    def __len__(self) -> int:
        return self.images.shape[0]

    def _map(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        return self.replace(
            images=move(self.images),
            labels=None if self.labels is None else move(self.labels),
            not_padding=move(self.not_padding),
            index=move(self.index),
            extra={key: move(value) for key, value in self.extra.items()},
            labelled=None if self.labelled is None else move(self.labelled),
        )


@dataclass
class Outputs:
    """What a network returns.

    Attributes:
        logits: (B, K, h, w) at head resolution, before up-sampling.
        features: tapped values by tap name, e.g. ``features["stage4"]`` (B, C, h, w).
        exist: (B, L) lane existence logits, or None.
        aux: logits of auxiliary heads by name, (B, K, h, w).
        kind: ``"log_prob"`` if ``logits`` are log-probabilities (ensembles, black boxes).
        known: (B, h, w) bool, False where a black box has no prediction; None: everywhere True.
        tail: (B, K, h, w): of a black box that names its most probable classes only, the
            probability in ``logits`` that it gave to no class in particular; None: there is none.
        unknown: ids of classes that a teacher of other classes cannot know.
        rows: of a network that classifies rows of lanes, see ``ops.row_cells``: heights of the rows
            of ``logits`` in the image, from top to bottom, as shares of its height; its columns are
            cells. Empty: ``logits`` are a map of the whole image.
    """

    logits: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)
    exist: Tensor | None = None
    aux: dict[str, Tensor] = field(default_factory=dict)
    kind: Literal["logits", "log_prob"] = "logits"
    known: Tensor | None = None
    tail: Tensor | None = None
    unknown: tuple[int, ...] = ()
    rows: tuple[float, ...] = ()

    def tap(self, name: str) -> Tensor:
        """The tapped value of a name, (B, C, h, w); ``logits`` always exists.

        Raises:
            KeyError: there is no such tap.
        """
        return self.logits if name == "logits" else self.features[name]

    def tensors(self) -> list[Tensor]:
        """All tensors, in the shapes above."""
        more = [part for part in (self.exist, self.known, self.tail) if part is not None]
        return [self.logits, *more, *self.features.values(), *self.aux.values()]

    def detach(self) -> "Outputs":
        """The same values, detached."""
        return self.map(lambda tensor: tensor.detach())

    def map(self, change: Callable[[Tensor], Tensor]) -> "Outputs":
        """Applies ``change`` to every tensor, which may be of any shape."""
        return Outputs(
            change(self.logits),
            {name: change(value) for name, value in self.features.items()},
            None if self.exist is None else change(self.exist),
            {name: change(value) for name, value in self.aux.items()},
            self.kind,
            None if self.known is None else change(self.known),
            None if self.tail is None else change(self.tail),
            self.unknown,
            self.rows,
        )


@dataclass
class Term:
    """One unweighted loss: the mean over ``count`` items.

    Attributes:
        value: 0-d tensor with a graph; a differentiable zero if ``count`` is 0.
        count: float64 0-d tensor without gradient (pixels, images, pairs, Σ class weights), or
            None if every process computes the same value from gathered tensors.
    """

    value: Tensor
    count: Tensor | None = None
