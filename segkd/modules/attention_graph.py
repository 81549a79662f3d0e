"""Multi-head attention of the nodes of one stage to those of another, and what it is trained by."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkd.ops.queued import queued


class AttentionGraph(nn.Module):
    """How nodes at a late stage attend to the same nodes at an early one.

    Batch norm is over nodes, which are those of all processes: its statistics need no exchange.

    Args:
        late, early: channels of the nodes at both stages.
        heads: number of heads.
        width: channels of a head.
    """

    def __init__(self, late: int, early: int, *, heads: int, width: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.sender = _normalised(late, heads * width)
        self.receiver = _normalised(early, heads * width)
        self.value = nn.Sequential(_normalised(early, width), nn.ReLU())
        self.estimate = nn.Linear(heads * width, late)
        nn.init.zeros_(self.estimate.bias)

    def forward(self, late: Tensor, early: Tensor) -> Tensor:
        """Attention before the softmax.

        Args:
            late: nodes (M, C_late).
            early: the same nodes at the early stage, (M, C_early).

        Returns:
            (heads, M, M): row i is what node i of the late stage attends to.
        """
        sent = self.sender(late).unflatten(1, (self.heads, self.width)).movedim(1, 0)
        received = self.receiver(early).unflatten(1, (self.heads, self.width)).movedim(1, 0)
        return sent @ received.mT

    def estimate_loss(
        self, late: Tensor, early: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Mean over nodes of 1 − cosine between the late nodes and their estimate.

        The estimate is made of the early nodes, by the attention in a random half of the heads,
        drawn for each node.

        Args:
            late, early: as of ``forward``; unit vectors.
            generator: on the CPU, for the heads; the same on all processes.

        Returns:
            A scalar; a differentiable zero with fewer than two nodes, which have no statistics.
        """
        if len(late) < 2:
            return 0 * torch.cat([p.flatten() for p in self.parameters()]).sum()
        noise = torch.randn(self.heads, len(late), 1, generator=generator)
        kept = queued(noise >= noise.mean(dim=0), late.device, late.dtype)  # a single head is kept
        attention = self(late, early).softmax(dim=2) * kept
        mixed = (attention @ self.value(early)).movedim(0, 1).flatten(1)
        return (1 - F.cosine_similarity(self.estimate(mixed), late, dim=1)).mean()


def _normalised(channels: int, out_channels: int) -> nn.Sequential:
    """A linear layer and batch norm over nodes (M, channels)."""
    return nn.Sequential(
        nn.Linear(channels, out_channels, bias=False), nn.BatchNorm1d(out_channels)
    )
