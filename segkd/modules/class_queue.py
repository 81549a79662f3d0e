"""A ring of vectors per class, what fills it, and nodes of other classes out of it as negatives.

No step of it waits for the device.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ClassQueue(nn.Module):
    """The last ``size`` vectors of each class.

    All of its state is in buffers. It stays equal on all processes where all of them push the
    same (gathered) vectors and sample with the same generator.

    Args:
        classes: K.
        size: vectors that a class holds; the oldest is overwritten.
        channels: C.
        dtype: of what is stored; bfloat16 takes half of the memory.
    """

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
            present: (B, K, P) bool, False where there is none.

        Raises:
            ValueError: B·P vectors, which may be of one class, exceed its ring.
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
        # Absent vectors line up behind the present ones and leave their slots as they are: so all
        # shapes are fixed, and nothing must be known on the host.
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

        The draws are spread over the age of the entries: each comes from its own share of the
        ring, so a vector returns only where a class holds fewer than about ``per_class``.

        Args:
            per_class: M.
            generator: on the CPU.

        Returns:
            (K·M, C) vectors in the queue's dtype, and (K·M) bool, False for classes that hold
            nothing yet.
        """
        classes, size, _ = self.entries.shape
        place = torch.rand(classes, per_class, generator=generator)
        place = ((place + torch.arange(per_class)) / per_class).to(self.entries.device)
        stored = self.written.clamp(max=size)[:, None]
        slots = torch.minimum((place * stored).long(), (stored - 1).clamp(min=0))
        keep = (stored > 0).expand_as(slots)
        return self.entries.flatten(0, 1).index_select(0, self._flat(slots)), keep.flatten()

    def _flat(self, slots: Tensor) -> Tensor:
        """(K, M) slots of each class as positions in all rings, one behind the other."""
        classes, size, _ = self.entries.shape
        return (slots + size * torch.arange(classes, device=slots.device)[:, None]).flatten()


def pick_per_class(
    labels: Tensor, classes: int, count: int, generators: Sequence[torch.Generator]
) -> tuple[Tensor, Tensor]:
    """Up to ``count`` random positions of each class and image.

    Args:
        labels: (B, N) class ids; whatever is outside 0…K−1 is never picked.
        classes: K.
        count: P.
        generators: one per image, on the CPU.

    Returns:
        (B, K, P) int64 positions in 0…N−1 and (B, K, P) bool, False where an image has fewer
        than P positions of a class.
    """
    size = labels.shape[1]
    shuffled = torch.stack([torch.randperm(size, generator=g) for g in generators])
    shuffled = shuffled.to(labels.device)
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
    """Up to ``count`` random positions per image among those that (B, N) bool ``keep`` allows.

    Returns:
        (B, M) int64 positions and (B, M) bool, False where an image allows fewer.
    """
    places, present = pick_per_class(keep.long() - 1, 1, count, generators)
    return places[:, 0], present[:, 0]


def class_means(
    nodes: Tensor, labels: Tensor, classes: int, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """The mean of each class of each image, of nodes times a factor.

    Args:
        nodes: (B, N, C), any strides.
        labels: (B, N) class ids; whatever is outside 0…K−1 belongs to no mean.
        classes: K.
        factor: (B, N), e.g. the inverse lengths of the nodes.

    Returns:
        (B, K, C) means and (B, K) bool, False for classes that an image does not show.
    """
    members = labels[:, None] == torch.arange(classes, device=labels.device)[:, None]
    number = members.sum(2)
    with torch.autocast(nodes.device.type, enabled=False):
        sums = (members * factor[:, None]) @ nodes
    return sums / number.clamp(min=1).unsqueeze(2), number > 0


class NodeQueue(ClassQueue):
    """A ring of nodes per class, filled with nodes as the sampler gives them."""

    def append(self, nodes: Tensor, classes: Tensor) -> None:
        """Stores nodes in their order; what a ring cannot hold is left out, the first ones first.

        Args:
            nodes: (M, C), the same on all processes.
            classes: (M,) int64; nodes outside of 0…K−1 are left out.
        """
        count, size, _ = self.entries.shape
        length = max(1, min(size, len(nodes)))
        rows, present = by_class(nodes, classes, count, length)
        self.push(rows.unsqueeze(0), present.unsqueeze(0))

    def others(self, classes: Tensor) -> tuple[Tensor, Tensor]:
        """All that is stored, and what of it is of another class than each of some nodes.

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
    """Sorts rows into classes, in their order; of more than ``length`` the last ones stay.

    Args:
        nodes: (M, C).
        classes: (M,) int64; nodes outside of 0…K−1 are left out.
        count: K.
        length: the most rows P of a class.

    Returns:
        (K, P, C) and (K, P) bool, False behind the last row of a class.
    """
    member = classes.unsqueeze(1) == torch.arange(count, device=classes.device)
    rank = (member.cumsum(dim=0) * member).sum(dim=1) - 1
    rank = rank - (member * (member.sum(dim=0) - length).clamp(min=0)).sum(dim=1)
    stay = rank >= 0
    place = classes[stay], rank[stay]
    rows = nodes.new_zeros(count, length, nodes.shape[1])
    present = torch.zeros(count, length, dtype=torch.bool, device=nodes.device)
    rows[place], present[place] = nodes[stay], True
    return rows, present
