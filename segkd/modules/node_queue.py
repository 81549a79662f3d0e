"""The last nodes of each class, as negatives of nodes of other classes."""

import torch
from torch import Tensor

from segkd.modules.class_queue import ClassQueue


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
