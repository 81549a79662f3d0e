"""Layers in a form that is exported for images of any size, and soon.

Exporters unroll ``AdaptiveAvgPool2d(n)`` for the size of the example. As two products with
matrices computed from the size, it works for every size (PSPNet, UPerNet, ESPNetv2). ReLU6 in
place is taken apart by a slow reference implementation: half of the time of MobileNetV2's export.
"""

import torch
from torch import Tensor, nn

from segkd.export.enet_layers import MaskDown, MaskUp, SplitPReLU
from segkd.models.enet import DownBottleneck, UpBottleneck
from segkd.models.espnetv2 import PoolTo


class MatrixPool(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as products with two averaging matrices.

    Args:
        output_size: (h, w) of the output.
    """

    def __init__(self, output_size: tuple[int, int]) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C, *output_size)."""
        return pooled(x, self.output_size)


class MatrixPoolTo(nn.Module):
    """``MatrixPool`` with the output size as an argument of ``forward``."""

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, C, h, w) to (B, C, *size)."""
        return pooled(x, size)


class Clip(nn.Module):
    """``nn.ReLU6``, not in place."""

    def forward(self, x: Tensor) -> Tensor:
        """The values of ``x``, at least 0, at most 6; in its shape."""
        return x.clamp(0.0, 6.0)


def pooled(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Adaptive average pooling of (B, C, h, w) to (B, C, *size)."""
    rows, columns = (
        averaging(count, length, x.device) for count, length in zip(size, x.shape[-2:], strict=True)
    )
    return rows @ x @ columns.T


def averaging(count: int, length: int, device: torch.device) -> Tensor:
    """The averaging matrix (count, length), float32.

    Row i averages positions floor(i·length/count) to ceil((i+1)·length/count), computed with
    integers, so that rounding does not move a border.
    """
    number = torch.arange(count, device=device)[:, None]
    position = torch.arange(length, device=device)[None]
    first, end = number * length // count, ((number + 1) * length + count - 1) // count
    inside = ((position >= first) & (position < end)).float()
    return inside / (end - first).float()


def exportable(module: nn.Module) -> nn.Module:
    """Replaces, in place, layers by forms of the same values; returns ``module``.

    Adaptive poolings to more than one position work for any size, ReLU6 is traced quickly, and
    PReLU and ENet's poolings are computed quickly.
    """
    for name, child in module.named_children():
        replacement = _replacement(child)
        if replacement is not None:
            setattr(module, name, replacement)
        exportable(replacement or child)
    return module


def _replacement(layer: nn.Module) -> nn.Module | None:
    """What stands in for a layer in an exported network; None: the layer itself."""
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        size = layer.output_size
        height, width = size if isinstance(size, tuple) else (size, size)
        if height is None or width is None or (height, width) == (1, 1):
            return None
        return MatrixPool((height, width))
    if isinstance(layer, nn.PReLU):
        return SplitPReLU(layer) if layer.num_parameters > 1 else None
    if isinstance(layer, PoolTo):
        return MatrixPoolTo()
    if isinstance(layer, nn.ReLU6):
        return Clip()
    if isinstance(layer, DownBottleneck):
        return MaskDown(layer)
    return MaskUp(layer) if isinstance(layer, UpBottleneck) else None
