"""A block that adds to each position what all positions of its image say: graph reasoning."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_START = 1e-2  # of the context beside the features themselves


class ContextBlock(nn.Module):
    """relu(norm(W [x; relu(norm(V · attention(x)))])): features joined with their image's context.

    Attention of one head with C/2 channels over all valid positions; the map of similarities is
    not kept. Normalisations are over the channels of a position, so nothing is shared between
    processes. At the start W passes x on, nearly without context: random layers would turn
    features into noise, for everything that is compared with them.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        self.query, self.key, self.value = (
            nn.Linear(channels, inner, bias=False) for _ in range(3)
        )
        self.spread = nn.Linear(inner, channels, bias=False)
        self.spread_norm = nn.LayerNorm(channels)
        self.join = nn.Linear(2 * channels, channels, bias=False)
        self.join_norm = nn.LayerNorm(channels)
        with torch.no_grad():
            self.join.weight *= _START
            self.join.weight[:, :channels] = torch.eye(channels)

    def forward(self, maps: Tensor, mask: Tensor) -> Tensor:
        """Maps (B, C, h, w), of which ``mask`` (B, h, w) is valid, to the same shape.

        Invalid positions are seen by none, and become 0.
        """
        hidden = ~mask.unsqueeze(1)
        nodes = maps.masked_fill(hidden, 0).flatten(2).mT  # (B, N, C)
        seen = mask.flatten(1)
        seen = seen | ~seen.any(dim=1, keepdim=True)  # a softmax over nothing would be NaN
        query, key, value = (
            layer(nodes).unsqueeze(1) for layer in (self.query, self.key, self.value)
        )
        around = F.scaled_dot_product_attention(query, key, value, seen[:, None, None])
        context = self.spread_norm(self.spread(around.squeeze(1))).relu()
        joined = self.join_norm(self.join(torch.cat([nodes, context], dim=2))).relu()
        return joined.mT.unflatten(2, mask.shape[1:]).masked_fill(hidden, 0)
