"""Forward passes over images: whole, in sliding windows, at several scales, mirrored."""

import math
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkd.errors import SegKDError
from segkd.inference.scores import Tiles, View, label_map
from segkd.structures import Outputs

if TYPE_CHECKING:
    from segkd.config.schema import EvalConfig


@torch.no_grad()
def label_maps(
    network: nn.Module,
    images: Tensor,
    size: tuple[int, int] | None = None,
    config: "EvalConfig | None" = None,
) -> Tensor:
    """The most probable class of each pixel.

    Args:
        network: returns ``Outputs``; run in its present mode, usually eval.
        images: (B, 3, H, W) uint8 RGB on the network's device, of any size.
        size: (H, W) of the label maps; None: that of the images.
        config: scales, flip and sliding windows; None: the whole image once.

    Returns:
        (B, *size) uint8, or int64 for more than 256 classes.
    """
    height, width = size or images.shape[2:]
    return label_map(views(network, images, config), (height, width))


def views(network: nn.Module, images: Tensor, config: "EvalConfig | None") -> list[View]:
    """One ``View`` of the images per scale, and per scale one of the mirrored images.

    Args:
        network: returns ``Outputs``; run in its present mode.
        images: (B, 3, H, W) uint8 RGB on the network's device.
        config: scales, flip and sliding windows; None: the whole image once.
    """
    if config is None:
        return [_view(network, images, None, 0.0)]
    found = []
    for scale in config.scales:
        scaled = resize_images(images, scale)
        for flipped in (False, True) if config.flip else (False,):
            seen = scaled.flip(3) if flipped else scaled
            view = _view(network, seen, config.sliding, config.overlap)
            found.append(View(view.scores, view.extent, flipped, view.probabilities))
    return found


def resize_images(images: Tensor, scale: float) -> Tensor:
    """Resizes (B, 3, H, W) uint8 by a factor, bilinear; sides are rounded and at least 1."""
    if scale == 1:
        return images
    size = [max(1, round(side * scale)) for side in images.shape[2:]]
    resized = F.interpolate(images.float(), size, mode="bilinear", align_corners=False)
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def windows(
    size: tuple[int, int], window: int | tuple[int, int], overlap: float
) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of windows that cover an image of ``size`` (H, W).

    Neighbours share ``overlap`` of a window, rounded up to pixels; the last window ends at the
    image border. A window larger than the image is cropped to it.
    """
    sides = (window, window) if isinstance(window, int) else window
    spans = []
    for length, side in zip(size, sides, strict=True):
        side = min(side, length)
        step = max(1, math.floor(side * (1 - overlap) + 1e-6))
        starts = [*range(0, length - side, step), length - side]
        spans.append([slice(start, start + side) for start in starts])
    return ((rows, columns) for rows in spans[0] for columns in spans[1])


def _view(
    network: nn.Module, images: Tensor, window: int | tuple[int, int] | None, overlap: float
) -> View:
    """Scores of images at their given size, whole or joined from windows. Raises SegKDError."""
    height, width = images.shape[2:]
    parts = [] if window is None else [*windows((height, width), window, overlap)]
    if len(parts) <= 1:
        return _forward(network, images)
    tiles = tuple(
        (rows, columns, _forward(network, images[:, :, rows, columns])) for rows, columns in parts
    )
    return View(Tiles(tiles, (height, width)), (height, width), probabilities=True)


def _forward(network: nn.Module, images: Tensor) -> View:
    outputs, extent = padded_outputs(network, images)
    if outputs.rows:
        raise SegKDError(
            "this student classifies rows of lanes and labels no pixels. Use `segkd lane` for "
            "images and videos, `segkd eval` for scores"
        )
    return View(outputs.logits, extent)


def padded_outputs(
    network: nn.Module, images: Tensor, taps: Collection[str] = ()
) -> tuple[Outputs, tuple[float, float]]:
    """A forward pass on images padded to multiples of the network's ``divisor``.

    Args:
        network: returns ``Outputs``; run in its present mode.
        images: (B, 3, H, W) uint8 RGB on its device; padded by repeating the border.
        taps: names of features to return.

    Returns:
        The outputs, and the rows and columns of their logits that the images cover.
    """
    height, width = images.shape[2:]
    divisor = getattr(network, "divisor", 1)
    rows, columns = (
        torch.arange(-(-side // divisor) * divisor, device=images.device).clamp(max=side - 1)
        for side in (height, width)
    )
    if len(rows) != height:
        images = images[:, :, rows]
    if len(columns) != width:
        images = images[:, :, :, columns]
    outputs = network(images, taps) if taps else network(images)
    h, w = outputs.logits.shape[2:]
    return outputs, (h * height / len(rows), w * width / len(columns))
