"""Lanes as classes of rows: in which cell of a row a lane is, or in none.

Qin, Wang, Li: Ultra Fast Structure-aware Deep Lane Detection, ECCV 2020, arXiv 2004.11757. In each
of R rows of the image (row anchors) the width is divided into G equal cells, and each lane has a
distribution over them and "not in this row". It is stored like a map of logits (B, L+1, R, G):

    z[b, l, r, c] = logit of cell c minus logit of "none",   channel 0 (background) is 0
    P(cell c)     = exp z[c] / (1 + Σ_k exp z[k]),   P(none) = 1 / (1 + Σ_k exp z[k])

so that, as in a map, a lane is more probable than the background where its logit is above 0.
Heights of rows are shares of the image's height: y = share · H − 0.5 in pixels, pixel centres being
whole numbers; the centre of cell c is x = (c + 0.5) · W / G − 0.5.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segkd.ops.kept import kept

NONE = -1  # target: the lane is not in this row
UNKNOWN = -2  # target: padding, or an image without labels


def cell_logits(logits: Tensor) -> Tensor:
    """Logits of cells against "none": (B, L+1, R, G) -> (B, L, R, G), float32 or wider."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits[:, 1:] - logits[:, :1]


def cell_shares(logits: Tensor) -> Tensor:
    """Probabilities of the cells: (B, L+1, R, G) -> (B, L, R, G); with "none" they sum to 1."""
    return F.pad(cell_logits(logits), (1, 0)).softmax(3)[..., 1:]


def expected_cells(shares: Tensor) -> Tensor:
    """Mean cell (…,) of probabilities (…, G), given that the lane is in the row; 0 without any."""
    cells = torch.arange(shares.shape[-1], dtype=shares.dtype, device=shares.device)
    total = shares.sum(-1)
    return (shares * cells).sum(-1) / torch.where(total > 0, total, 1)


def row_heights(rows: Sequence[float], height: int, like: Tensor) -> Tensor:
    """y of the rows in pixels of an image of ``height``, (R,) in dtype and device of ``like``."""
    return _heights(tuple(rows), height, like.dtype, like.device)


@kept
def _heights(
    rows: tuple[float, ...], height: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    return torch.tensor(rows, dtype=dtype, device=device) * height - 0.5


def crossings(lanes: Tensor, y: Tensor) -> Tensor:
    """Where lanes cross rows; of several crossings in a row, that of the earliest points.

    Args:
        lanes: (B, L, P, 2) x and y of points, which are joined by straight lines; NaN where there
            is no point, which also ends a line.
        y: (R,) heights of the rows.

    Returns:
        (B, L, R) x, NaN where a lane does not cross the row.
    """
    if lanes.shape[2] < 2:
        return lanes.new_full((*lanes.shape[:2], len(y)), torch.nan)
    begin, end = lanes[:, :, None, :-1], lanes[:, :, None, 1:]
    low, high = begin[..., 1], end[..., 1]
    level = y.view(1, 1, -1, 1)
    crosses = (torch.minimum(low, high) <= level) & (level <= torch.maximum(low, high))
    first = crosses.to(torch.uint8).argmax(3, keepdim=True)
    x0, x1, y0, y1 = (
        part.expand(crosses.shape).gather(3, first).squeeze(3)
        for part in (begin[..., 0], end[..., 0], low, high)
    )
    rise = y1 - y0
    share = torch.where(rise != 0, (y - y0) / torch.where(rise != 0, rise, 1), 0)
    return (x0 + share * (x1 - x0)).masked_fill(~crosses.any(3), torch.nan)


def cell_targets(
    lanes: Tensor, exist: Tensor, not_padding: Tensor, rows: Sequence[float], cells: int
) -> Tensor:
    """The cell of each lane in each row.

    Args:
        lanes: (B, L, P, 2) points x, y in pixels of the image, padded with NaN.
        exist: (B, L), NaN for images without labels.
        not_padding: (B, H, W) bool.
        rows: heights as shares.
        cells: G.

    Returns:
        (B, L, R) int64: a cell, ``NONE`` where the lane is absent or outside of the image, or
        ``UNKNOWN`` where it is in padding, or all of the row is, or the image has no labels.
    """
    height, width = not_padding.shape[1:]
    x = crossings(lanes, row_heights(rows, height, lanes))
    cell = ((x + 0.5) * (cells / width)).floor()
    inside = (cell >= 0) & (cell < cells)
    target = torch.where(inside, cell, NONE).long()
    seen = not_padding[:, pixel_rows(rows, height, not_padding.device)]  # (B, R, W)
    column = x.round().nan_to_num(0).clamp(0, width - 1).long()
    shown = seen.unsqueeze(1).expand(-1, x.shape[1], -1, -1).gather(3, column.unsqueeze(3))
    known = torch.where(inside, shown.squeeze(3), seen.any(2).unsqueeze(1))
    return target.masked_fill(~known | exist.isnan().unsqueeze(2), UNKNOWN)


def pixel_rows(rows: Sequence[float], height: int, device: torch.device) -> Tensor:
    """The pixel rows (R,) int64 in which the rows of an image of ``height`` are."""
    return _pixel_rows(tuple(rows), height, device)


@kept
def _pixel_rows(rows: tuple[float, ...], height: int, device: torch.device) -> Tensor:
    at = torch.tensor(rows, dtype=torch.float64) * height
    return at.floor().clamp(0, height - 1).long().to(device, non_blocking=True)


@kept
def cell_columns(cells: int, width: int, device: torch.device) -> Tensor:
    """The pixel columns (G,) int64 in which the centres of the cells are."""
    at = (torch.arange(cells, dtype=torch.float64) + 0.5) * (width / cells)
    return at.floor().clamp(0, width - 1).long().to(device, non_blocking=True)


def at_cells(values: Tensor, rows: Sequence[float], cells: int) -> Tensor:
    """Masks or labels (B, H, W) of any dtype at the rows and cells, nearest: (B, R, G)."""
    height, width = values.shape[1:]
    there = values[:, pixel_rows(rows, height, values.device)]
    return there[:, :, cell_columns(cells, width, values.device)]


def map_at_rows(logits: Tensor, rows: Sequence[float], cells: int) -> Tensor:
    """A map of the whole image (B, K, h, w) at rows and cells: (B, K, R, G), float32 or wider.

    Linear between the map's rows; its columns are averaged where they are finer than cells, and
    interpolated where they are coarser, so that each cell keeps a value of its own.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    place = row_heights(rows, logits.shape[2], logits).clamp(0, logits.shape[2] - 1)
    lower = place.floor()
    upper = place.ceil().long()
    lines = torch.lerp(logits[:, :, lower.long()], logits[:, :, upper], (place - lower)[:, None])
    if lines.shape[3] > cells:
        return F.adaptive_avg_pool2d(lines, (len(rows), cells))
    if lines.shape[3] == cells:
        return lines
    return F.interpolate(lines, (len(rows), cells), mode="bilinear", align_corners=False)
