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
    """Logits (B, K, h, w), averaged to the size of the images if they are larger."""
    height, width = images.shape[-2:]
    return F.adaptive_avg_pool2d(logits, (height, width)) if logits.shape[-2] > height else logits


def strides_of_given(taps: Mapping[str, TapInfo], factor: float) -> dict[str, TapInfo]:
    """Taps of a network with strides of its own images, with those of the images it is given."""
    return {
        tap: replace(info, stride=max(1, round(info.stride / factor))) for tap, info in taps.items()
    }
