"""From a network's coarse logits to class scores at any resolution, in chunks of rows.

A forward pass gives a ``View``: scores at head resolution, and the part of them that the image
covers (the rest is input padding). Views of several scales and flips are averaged while
up-sampling, and so are sliding windows (``Tiles``), so that no K x H x W tensor beyond one chunk is
kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from segkd.ops.bilinear import blend, neighbours
from segkd.ops.queued import queued

CHUNK = 4_000_000  # numbers in one up-sampled chunk: 16 MB, for the caches of a CPU
CHUNK_OF_DEVICE = 32_000_000  # of a GPU, on which each chunk costs launches


@dataclass(frozen=True)
class View:
    """Scores of one pass over the images.

    Attributes:
        scores: (B, K, h, w) logits, or probabilities; or ``Tiles``.
        extent: rows and columns of ``scores`` that the image covers; may be fractional.
        flipped: whether the image was mirrored.
        probabilities: whether ``scores`` are probabilities, not logits.
    """

    scores: "Tensor | Tiles"
    extent: tuple[float, float]
    flipped: bool = False
    probabilities: bool = False


@dataclass(frozen=True)
class Tiles:
    """Class probabilities (B, K, H, W) of sliding windows, averaged where these overlap.

    Only the coarse scores of the windows are kept; rows are up-sampled when they are asked for.

    Attributes:
        windows: rows and columns in the image, and the view, of each window.
        size: (H, W) of the image, which the windows cover.
    """

    windows: tuple[tuple[slice, slice, View], ...]
    size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, K, H, W)."""
        return (*self.windows[0][2].scores.shape[:2], *self.size)

    def rows(self, first: int, stop: int) -> Tensor:
        """The probabilities (B, K, stop - first, W) of some rows, float32 or float64."""
        total: Tensor | None = None
        count = torch.zeros(stop - first, self.size[1])
        for rows, columns, view in self.windows:
            top, bottom = max(first, rows.start), min(stop, rows.stop)
            if top >= bottom:
                continue
            size = rows.stop - rows.start, columns.stop - columns.start
            part = _probabilities(view, size, range(top - rows.start, bottom - rows.start))
            if total is None:
                total = part.new_zeros(*part.shape[:2], stop - first, self.size[1])
            total[:, :, top - first : bottom - first, columns] += part
            count[top - first : bottom - first, columns] += 1
        assert total is not None  # windows cover the image
        return total.div_(queued(count, total.device))


def score_chunks(
    views: list[View], size: tuple[int, int], chunk: int | None = None
) -> Iterator[Tensor]:
    """Class scores of the averaged views in chunks of rows, from top to bottom.

    Args:
        views: of the same images.
        size: (H, W) to which scores are up-sampled, bilinear with ``align_corners=False``.
        chunk: numbers per chunk; None: as many as suit the device.

    Yields:
        (B, K, rows, W) float32 or float64: the scores of a single view, else the mean of the
        views' probabilities.
    """
    batch, classes = views[0].scores.shape[:2]
    if chunk is None:
        chunk = CHUNK_OF_DEVICE if _device(views[0]).type == "cuda" else CHUNK
    step = max(1, chunk // (batch * classes * size[1]))
    for start in range(0, size[0], step):
        rows = range(start, min(start + step, size[0]))
        if len(views) == 1:
            yield upsample_rows(views[0], size, rows)
            continue
        total = _probabilities(views[0], size, rows)
        for view in views[1:]:
            total = total + _probabilities(view, size, rows)
        yield total / len(views)


def label_map(views: list[View], size: tuple[int, int]) -> Tensor:
    """The most probable class of each pixel: (B, *size) uint8, int64 for more than 256 classes."""
    dtype = torch.uint8 if views[0].scores.shape[1] <= 256 else torch.int64
    # max, not argmax: three times faster on a CPU along an axis that is not the last
    return torch.cat([chunk.max(1).indices.to(dtype) for chunk in score_chunks(views, size)], 1)


def class_probabilities(views: list[View], size: tuple[int, int]) -> Tensor:
    """Class probabilities (B, K, *size) float32 or float64."""
    scores = torch.cat(list(score_chunks(views, size)), 2)
    return scores if len(views) > 1 or views[0].probabilities else scores.softmax(1)


def upsample_rows(view: View, size: tuple[int, int], rows: range) -> Tensor:
    """Some rows (B, K, len(rows), W) of a view's scores (B, K, h, w) up-sampled to ``size`` (H, W).

    Equal to cropping the result of ``F.interpolate``, up to rounding.
    """
    upper, lower, down = neighbours(rows, view.extent[0] / size[0], view.scores.shape[2])
    first, stop = int(upper[0]), int(lower[-1]) + 1
    if isinstance(view.scores, Tiles):
        scores = view.scores.rows(first, stop)
    else:
        scores = view.scores[:, :, first:stop]
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    columns = range(size[1])[:: -1 if view.flipped else 1]
    left, right, across = neighbours(columns, view.extent[1] / size[1], scores.shape[3])
    scores = blend(scores, 3, left, right, across)
    return blend(scores, 2, upper - first, lower - first, down[:, None])


def cell_means(maps: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Maps (…, h, w) of an image, averaged to one position per N x N of its pixels.

    All cells are of one size, a fraction of the image, as a run that reads stored predictions
    stretches these over the whole image: cells of N pixels and a smaller last one would be shifted.

    Args:
        maps: of the whole image.
        size: (H, W) of the image.
        stride: N; maps that are coarser stay as they are.

    Returns:
        (…, ceil(H / N), ceil(W / N)), or smaller.
    """
    pairs = zip(maps.shape[-2:], size, strict=True)
    rows, columns = (min(have, -(-side // stride)) for have, side in pairs)
    return F.adaptive_avg_pool2d(maps, (rows, columns))


def _device(view: View) -> torch.device:
    scores = view.scores
    return _device(scores.windows[0][2]) if isinstance(scores, Tiles) else scores.device


def _probabilities(view: View, size: tuple[int, int], rows: range) -> Tensor:
    scores = upsample_rows(view, size, rows)
    return scores if view.probabilities else scores.softmax(1)
