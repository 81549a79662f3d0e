"""Ring buffers of vectors per class, the sampling that fills them, and negatives from them.

No operation synchronises with the device.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segkd.ops.queued import queued


class ClassQueue(nn.Module):
    """The last ``size`` vectors of each class.

    All state is in buffers. It stays equal on all processes if all push the same (gathered)
    vectors and sample with the same generator.

    Args:
        classes: K.
        size: capacity per class; the oldest vector is overwritten.
        channels: C.
        dtype: of stored vectors; bfloat16 halves the memory.

    Attributes:
        entries: (K, size, C).
        written: (K,) int64, vectors written so far.
    """

    entries: Tensor
    written: Tensor

    def __init__(
        self, classes: int, size: int, channels: int, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.register_buffer("entries", torch.zeros(classes, size, channels, dtype=dtype))
        self.register_buffer("written", torch.zeros(classes, dtype=torch.int64))

    @torch.no_grad()
    def push(self, vectors: Tensor, present: Tensor) -> None:
        """Appends vectors in the order of the images.

        Args:
            vectors: (B, K, P, C), up to P of each class and image.
            present: (B, K, P) bool, False for unused slots.

        Raises:
            ValueError: B·P vectors, which may be of one class, exceed ``size``.
        """
        classes, size, channels = self.entries.shape
        images, _, per_image, _ = vectors.shape
        if images * per_image > size:
            raise ValueError(
                f"a queue of {size} vectors per class is smaller than one update: {images} images "
                f"in the global batch, up to {per_image} of a class each. Set its size to at least "
                f"{images * per_image}"
            )
        vectors = vectors.transpose(0, 1).reshape(classes, -1, channels).to(self.entries.dtype)
        present = present.transpose(0, 1).flatten(1)
        # Absent vectors are placed behind the present ones and keep the old entries: so all shapes
        # are fixed, and the host needs no values.
        number = present.sum(1, keepdim=True)
        behind = number + (~present).cumsum(1)
        order = torch.where(present, present.cumsum(1), behind) - 1
        slots = self._flat((self.written[:, None] + order) % size)
        entries = self.entries.flatten(0, 1)  # a view
        vectors = vectors.flatten(0, 1)
        held = entries.index_select(0, slots)
        entries.index_copy_(0, slots, torch.where(present.flatten()[:, None], vectors, held))
        self.written += number[:, 0]

    def sample(self, per_class: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Random vectors, equally many of each class that holds any.

        Samples are stratified by age: each comes from its own part of the ring, so a vector is
        repeated only if a class holds fewer than about ``per_class``.

        Args:
            per_class: M.
            generator: CPU generator.

        Returns:
            (K·M, C) vectors in the queue's dtype, and (K·M,) bool, False for empty classes.
        """
        classes, size, _ = self.entries.shape
        place = torch.rand(classes, per_class, generator=generator)
        place = (place + torch.arange(per_class)) / per_class
        place = queued(place, self.entries.device)
        stored = self.written.clamp(max=size)[:, None]
        slots = torch.minimum((place * stored).long(), (stored - 1).clamp(min=0))
        keep = (stored > 0).expand_as(slots)
        return self.entries.flatten(0, 1).index_select(0, self._flat(slots)), keep.flatten()

    def _flat(self, slots: Tensor) -> Tensor:
        """Slots (K, M) of each class as indices into the flattened entries, (K·M,)."""
        classes, size, _ = self.entries.shape
        return (slots + size * torch.arange(classes, device=slots.device)[:, None]).flatten()


def pick_per_class(
    labels: Tensor, classes: int, count: int, generators: Sequence[torch.Generator]
) -> tuple[Tensor, Tensor]:
    """Up to ``count`` random positions of each class and image.

    Args:
        labels: (B, N) class ids; ids outside of 0…K−1 are never picked.
        classes: K.
        count: P.
        generators: CPU generators, one per image.

    Returns:
        (B, K, P) int64 positions in 0…N−1 and (B, K, P) bool, False where an image has fewer
        than P positions of a class.
    """
    size = labels.shape[1]
    shuffled = torch.stack([torch.randperm(size, generator=g) for g in generators])
    shuffled = queued(shuffled, labels.device)
    labels = labels.masked_fill((labels < 0) | (labels >= classes), classes)
    ordered, order = labels.gather(1, shuffled).sort(dim=1, stable=True)
    bounds = torch.arange(classes + 1, device=labels.device, dtype=labels.dtype)
    bounds = torch.searchsorted(ordered, bounds.expand(len(labels), -1).contiguous())
    index = bounds[:, :-1, None] + torch.arange(count, device=labels.device)
    present = index < bounds[:, 1:, None]
    order = order.gather(1, index.clamp(max=size - 1).flatten(1))
    return shuffled.gather(1, order).view_as(index), present


def pick_valid(
    keep: Tensor, count: int, generators: Sequence[torch.Generator]
) -> tuple[Tensor, Tensor]:
    """Up to ``count`` random positions per image.

    Args:
        keep: (B, N) bool, positions that may be picked.
        count: M.
        generators: CPU generators, one per image.

    Returns:
        (B, M) int64 positions and (B, M) bool, False where an image has fewer.
    """
    places, present = pick_per_class(keep.long() - 1, 1, count, generators)
    return places[:, 0], present[:, 0]


def class_means(
    nodes: Tensor, labels: Tensor, classes: int, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """The mean of each class of each image, of nodes times a factor.

    Args:
        nodes: (B, N, C), any strides.
        labels: (B, N) class ids; ids outside of 0…K−1 belong to no mean.
        classes: K.
        factor: (B, N), e.g. the inverse lengths of the nodes.

    Returns:
        (B, K, C) means and (B, K) bool, False for classes that are not in an image.
    """
    members = labels[:, None] == torch.arange(classes, device=labels.device)[:, None]
    number = members.sum(2)
    with torch.autocast(nodes.device.type, enabled=False):
        sums = (members * factor[:, None]) @ nodes
    return sums / number.clamp(min=1).unsqueeze(2), number > 0


class NodeQueue(ClassQueue):
    """A ring buffer of nodes per class, filled with the output of a ``NodeSampler``."""

    def append(self, nodes: Tensor, classes: Tensor) -> None:
        """Stores nodes in order; of more nodes of a class than its capacity, the last are kept.

        Args:
            nodes: (M, C), the same on all processes.
            classes: (M,) int64; nodes outside of 0…K−1 are skipped.
        """
        count, size, _ = self.entries.shape
        length = max(1, min(size, len(nodes)))
        rows, present = by_class(nodes, classes, count, length)
        self.push(rows.unsqueeze(0), present.unsqueeze(0))

    def others(self, classes: Tensor) -> tuple[Tensor, Tensor]:
        """All stored vectors, and which of them are of another class than each node.

        Args:
            classes: (M,) of the nodes.

        Returns:
            (Q, C) vectors, Q = K·size, and (M, Q) bool.
        """
        count, size, _ = self.entries.shape
        slot = torch.arange(count * size, device=classes.device)
        written = slot % size < self.written[slot // size]
        return self.entries.flatten(0, 1), written & (classes.unsqueeze(1) != slot // size)


def by_class(nodes: Tensor, classes: Tensor, count: int, length: int) -> tuple[Tensor, Tensor]:
    """Groups rows by class, in order; of more than ``length`` per class the last are kept.

    Args:
        nodes: (M, C).
        classes: (M,) int64; nodes outside of 0…K−1 are skipped.
        count: K.
        length: P, largest number of rows per class.

    Returns:
        (K, P, C) and (K, P) bool, False behind the last row of a class.
    """
    member = classes.unsqueeze(1) == torch.arange(count, device=classes.device)
    rank = (member.cumsum(dim=0) * member).sum(dim=1) - 1
    rank = rank - (member * (member.sum(dim=0) - length).clamp(min=0)).sum(dim=1)
    # Rows that do not stay share a place behind all others: so no number is read from the device.
    last = count * length
    place = torch.where(rank >= 0, classes * length + rank, last)
    rows = nodes.new_zeros(last + 1, nodes.shape[1]).index_copy(0, place, nodes)
    present = member.new_zeros(last + 1).index_fill(0, place, True)
    return rows[:-1].view(count, length, -1), present[:-1].view(count, length)
