"""What checks of a network look at, and what they share."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from segkd.models.network import Network
from segkd.runtime import generator


@dataclass(frozen=True)
class NetworkSubject:
    """A network, and how another one of its kind is made.

    Attributes:
        prototype: never run; each check takes a copy.
        build: a fresh one for so many classes; None for a caller's own module.
        least: smallest height and width of images.
    """

    prototype: Network
    build: Callable[[int], Network] | None = None
    least: int = 32

    def network(self) -> Network:
        """A copy in training mode."""
        return copy.deepcopy(self.prototype).train()

    def sizes(self) -> list[tuple[int, int]]:
        """Some (H, W) that it says to take, none of them square."""
        if self.prototype.fixed_size:
            return [self.prototype.fixed_size]
        step = self.step()
        return [(2 * step, 3 * step), (3 * step, 2 * step), (step, 4 * step)]

    def step(self) -> int:
        """The smallest multiple of the divisor that is not below ``least``."""
        divisor = self.prototype.divisor
        return divisor * -(-self.least // divisor)

    def images(self, count: int = 2, size: tuple[int, int] | None = None) -> Tensor:
        """(B, 3, H, W) uint8 noise whose channels differ in their mean, so that none is another."""
        height, width = size or self.sizes()[0]
        draw = generator("images", count, height, width)
        low = torch.tensor([0, 40, 120]).view(1, 3, 1, 1)
        noise = torch.randint(0, 136, (count, 3, height, width), generator=draw)
        return (noise + low).to(torch.uint8)


def probabilities(logits: Tensor) -> bool:
    """Whether logits (B, K, h, w) are probabilities or their logarithms."""
    sums = logits.sum(1), logits.logsumexp(1)
    return any(
        torch.allclose(total, torch.full_like(total, of), atol=1e-4)
        for total, of in zip(sums, (1.0, 0.0), strict=True)
    )
