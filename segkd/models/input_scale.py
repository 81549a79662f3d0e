"""Networks whose images are larger or smaller than those that they are given."""

from collections.abc import Mapping
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from segkd.methods.base import TapInfo
from segkd.ops.resize import good_size


def scaled(images: Tensor, factor: float, divisor: int) -> Tensor:
    """Images (B, 3, H, W), floating point, with sides times ``factor``.

    Sides are rounded to multiples of ``divisor``.
    """
    height, width = images.shape[-2:]
    size = good_size((height * factor, width * factor), divisor)
    return F.interpolate(images, size, mode="bilinear", antialias=factor < 1)


def at_most(logits: Tensor, images: Tensor) -> Tensor:
    """Logits (B, K, h, w), averaged along the axes along which they are larger than the images."""
    (height, width), (most_height, most_width) = logits.shape[-2:], images.shape[-2:]
    size = (min(height, most_height), min(width, most_width))
    return logits if size == (height, width) else F.adaptive_avg_pool2d(logits, size)


def strides_of_given(taps: Mapping[str, TapInfo], factor: float) -> dict[str, TapInfo]:
    """Taps of a network with strides of its own images, with those of the images it is given."""
    return {
        tap: replace(info, stride=max(1, round(info.stride / factor))) for tap, info in taps.items()
    }
