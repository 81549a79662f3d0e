"""TensorFlow's "same" padding in a form that can be exported for images of any size.

timm pads its ``tf_`` networks by ceil(x / stride), computed anew by each layer. With symbolic
sizes these expressions nest, and the time that torch takes to simplify them grows without bound.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import timm.layers.padding
import torch


def same_padding(x: int, kernel_size: int, stride: int, dilation: int) -> int:
    """Number of padded positions of an axis, both ends together.

    Equal to max((ceil(x / stride) - 1) · stride + (kernel_size - 1) · dilation + 1 - x, 0), but
    with a remainder, which is known to be 0 wherever ``x`` is a multiple of ``stride``.

    Args:
        x: length of the axis, also a symbol.
        kernel_size, stride, dilation: of the convolution or the pooling along this axis.
    """
    span = (kernel_size - 1) * dilation + 1
    if span == 1:  # 1x1 kernels begin at multiples of the stride
        return 0
    least = span - stride  # if x is a multiple of the stride
    padding = least + -x % stride
    return padding if least >= 0 else cast(int, torch.sym_max(padding, 0))


@contextmanager
def exportable_same_padding() -> Iterator[None]:
    """timm's layers pad by ``same_padding`` meanwhile."""
    of_timm = timm.layers.padding.get_same_padding
    timm.layers.padding.get_same_padding = same_padding
    try:
        yield
    finally:
        timm.layers.padding.get_same_padding = of_timm
