"""A block that adds to every position what the whole image says (GcBlock).

Cao, Xu, Lin, Wei, Hu: GCNet. ICCV Workshops 2019, arXiv 1904.11492.
"""

import torch
from torch import Tensor, nn


class GlobalContext(nn.Module):
    """x + MLP(Σ_i softmax_i(w · x_i) x_i), the softmax over the valid positions of an image.

    The last layer starts at zero: a new block is the identity.

    Args:
        channels: of the maps.
        ratio: channels over those inside of the MLP.
    """

    def __init__(self, channels: int, ratio: int = 2) -> None:
        super().__init__()
        inner = max(4, channels // ratio)  # a LayerNorm over one channel says nothing
        self.score = nn.Conv2d(channels, 1, kernel_size=1)
        self.transform = nn.Sequential(
            nn.Linear(channels, inner),
            nn.LayerNorm(inner),
            nn.ReLU(),
            nn.Linear(inner, channels),
        )
        nn.init.kaiming_normal_(self.score.weight)
        nn.init.zeros_(self.transform[-1].weight)
        nn.init.zeros_(self.transform[-1].bias)

    def forward(self, maps: Tensor, mask: Tensor) -> Tensor:
        """(B, C, h, w) and (B, h, w) bool to (B, C, h, w); the invalid positions must be finite."""
        scores = self.score(maps).flatten(1).float().masked_fill(~mask.flatten(1), -torch.inf)
        empty = ~mask.flatten(1).any(dim=1, keepdim=True)
        attention = scores.masked_fill(empty, 0).softmax(dim=1).to(maps.dtype)
        context = torch.einsum("bcn,bn->bc", maps.flatten(2), attention)
        return maps + self.transform(context)[:, :, None, None]
