"""Adaptive pooling that can be exported for images of any size.

Exporters unroll ``AdaptiveAvgPool2d(n)`` for the size of the example. As two products with
matrices that are made from the size, it holds for every size (PSPNet, UPerNet, ESPNetv2).
"""

import torch
from torch import Tensor, nn

from segkd.models.espnetv2 import PoolTo


class MatrixPool(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as products with two averaging matrices."""

    def __init__(self, output_size: tuple[int, int]) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C, *output_size)."""
        return pooled(x, self.output_size)


class MatrixPoolTo(nn.Module):
    """The same to a size that the caller gives."""

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return pooled(x, size)


def pooled(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) to (B, C, *size)."""
    rows, columns = (
        averaging(count, length, x.device) for count, length in zip(size, x.shape[-2:], strict=True)
    )
    return rows @ x @ columns.T


def averaging(count: int, length: int, device: torch.device) -> Tensor:
    """(count, length): row i averages positions floor(i·length/count) to ceil((i+1)·length/count).

    Integers only, so that no rounding moves a border.
    """
    number = torch.arange(count, device=device)[:, None]
    position = torch.arange(length, device=device)[None]
    first, end = number * length // count, ((number + 1) * length + count - 1) // count
    inside = ((position >= first) & (position < end)).float()
    return inside / (end - first).float()


def exportable_pools(module: nn.Module) -> nn.Module:
    """Replaces, in place, adaptive poolings to more than one position; returns ``module``."""
    for name, child in module.named_children():
        if isinstance(child, nn.AdaptiveAvgPool2d):
            size = child.output_size
            size = (size, size) if isinstance(size, int) else size
            if size != (1, 1) and None not in size:
                setattr(module, name, MatrixPool(size))
        elif isinstance(child, PoolTo):
            setattr(module, name, MatrixPoolTo())
        else:
            exportable_pools(child)
    return module
