"""From probability maps to lane points, for a whole batch at once.

The procedure of SCNN (Pan et al., AAAI 2018, arXiv 1712.06080) and ENet-SAD: the map of each lane
is smoothed by a box filter, and in each sampled row the maximum is a point if it is above a
threshold; lanes that do not exist, or have fewer than two points, are dropped. Variants:

    python   box filter with replicated border; row = int(h − 20 i/H h − 1), x = int(column/w W),
             where x = 0 is not a point (public PyTorch code)
    matlab   box filter with zero padding, maps truncated to 8 bits (Torch's images); rows,
             columns and output are 1-based and rounded half away from zero

``sub_pixel`` interpolates maps between pixel centres and takes the centre of mass around the peak;
both variants then coincide. Given rows, as for TuSimple, are interpolated likewise, but without the
centre of mass.

With ``fit``, curves replace the points of each lane: see ``lane_fit``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segkd.config.schema import LaneRules
from segkd.inference.lane_fit import fit_rows

Size = tuple[int, int]  # height, width
AnyArray = TypeVar("AnyArray", np.ndarray, Tensor)

_ROWS = 18
_STEP, _HEIGHT = 20, 590  # pixels between two rows, and height of CULane's images
_FEWEST = 2  # smallest number of points of a lane


@dataclass(frozen=True)
class Lanes:
    """The lanes of one image, in pixels of the stored image. L slots, R rows.

    Attributes:
        x: (L, R) float64; NaN where a lane is absent.
        y: (R,) float64, the rows.
        scores: (L,) float32, existence probabilities; without an existence branch the mean of
            the lane's map at its points.
    """

    x: np.ndarray
    y: np.ndarray
    scores: np.ndarray

    @property
    def points(self) -> tuple[np.ndarray | None, ...]:
        """Points (n, 2) by slot, x and y from bottom to top; None without a lane."""
        order = np.argsort(-self.y, kind="stable")
        pairs = [np.stack([x, self.y], axis=1)[order] for x in self.x]
        kept = [pair[~np.isnan(pair[:, 0])] for pair in pairs]
        return tuple(pair if len(pair) else None for pair in kept)

    @property
    def found(self) -> list[np.ndarray]:
        """Points (n, 2) of the existing lanes, for metrics and files."""
        return [lane for lane in self.points if lane is not None]


Found = Lanes | np.ndarray  # of one image; an array is a map (H, W) uint8 of lane pixels (BDD100K)


@dataclass(frozen=True)
class Place:
    """Rows of one image.

    Attributes:
        y: (R,) in pixels of the stored image.
        row: (R,) on the map, may be fractional.
        seen: (R,) bool, False for rows outside the map.
    """

    y: np.ndarray
    row: np.ndarray
    seen: np.ndarray


def decode(
    probabilities: Tensor,
    exist: Tensor | None,
    sizes: Sequence[Size],
    rules: LaneRules | None = None,
    *,
    cut_top: int = 0,
    rows: Sequence[np.ndarray] | None = None,
) -> list[Lanes]:
    """Lanes of each image of a batch.

    Args:
        probabilities: (B, L+1, h, w) after the softmax; class 0 is the background.
        exist: (B, L) existence logits, or None.
        sizes: (H, W) of each stored image, including ``cut_top``.
        rules: thresholds and variant.
        cut_top: rows at the top of the stored images that the maps do not cover.
        rows: (R,) y of each image's rows, in pixels of the stored image; None: CULane's 18 from
            bottom to top, scaled with the height of the image.

    Returns:
        One ``Lanes`` per image.
    """
    rules = rules or LaneRules()
    height = probabilities.shape[2]
    exact = rules.sub_pixel or rows is not None
    places = [
        place_of(size, rules, height, cut_top, None if rows is None else rows[number])
        for number, size in enumerate(sizes)
    ]
    row, seen = _padded(places, probabilities.device)
    maps = probabilities[:, 1:].to(torch.promote_types(probabilities.dtype, torch.float32))
    profiles = _profiles(maps, row, rules, quantised=rules.variant == "matlab" and not exact)
    column = profiles.argmax(-1)  # the first of equal values
    value = profiles.gather(-1, column.unsqueeze(-1)).squeeze(-1)
    kept = (value > rules.threshold) & seen.unsqueeze(1)
    widths = torch.tensor([size[1] for size in sizes], dtype=torch.float64, device=maps.device)
    x = across(profiles, column, widths.view(-1, 1, 1), rules, exact=exact)
    if rules.variant == "python" and not exact:
        kept &= x > 0
    lanes = existing(x, value, kept, exist, places, rules)
    if rules.fit is None:
        return lanes
    return [fitted(one, size[1], rules) for one, size in zip(lanes, sizes, strict=True)]


def fitted(lanes: Lanes, width: int, rules: LaneRules) -> Lanes:
    """Lanes of an image of this width as curves; all of them as they are without ``rules.fit``."""
    if rules.fit is None or not len(lanes.x):
        return lanes
    x = [
        fit_rows(
            lane,
            lanes.y,
            width,
            rules.fit,
            tolerance=rules.fit_tolerance,
            largest_step=rules.largest_step,
        )
        for lane in lanes.x
    ]
    return Lanes(np.stack(x), lanes.y, lanes.scores)


def place_of(
    size: Size, rules: LaneRules, height: int, cut_top: int = 0, rows: np.ndarray | None = None
) -> Place:
    """The rows of an image.

    Args:
        size: (H, W) of the image, including ``cut_top``.
        rules: the variant.
        height: of its map.
        cut_top: rows at the top of the image that the map does not cover.
        rows: (R,) their y; None: CULane's 18.
    """
    if rows is None:
        return _culane_place(size, cut_top, height, rules)
    return _given_place(rows, size, cut_top, height)


def across(
    profiles: Tensor, column: Tensor, widths: Tensor, rules: LaneRules, *, exact: bool
) -> Tensor:
    """Columns of the maps as x in the images.

    Args:
        profiles: (B, L, R, w) of the maps.
        column: (B, L, R) int64, below w.
        widths: (B, 1, 1) float64, of the images.
        rules: the variant, and whether x is the centre of mass around the column.
        exact: x of the centre of the column, without rounding.

    Returns:
        (B, L, R) float64.
    """
    width = profiles.shape[-1]
    if rules.sub_pixel:
        place = _centre_of_mass(profiles, column, rules.smoothing)
        return (place + 0.5) * widths / width - 0.5
    if exact:
        return (column.double() + 0.5) * widths / width - 0.5
    if rules.variant == "matlab":
        return _half_away((column + 1) * widths / width) - 1
    return (column.double() / width * widths).trunc()  # float32 is off by one for some columns


def _culane_place(size: Size, cut_top: int, height: int, rules: LaneRules) -> Place:
    """The 18 rows of CULane."""
    number, full = np.arange(_ROWS), size[0]
    step, shown = _STEP * full / _HEIGHT, full - cut_top
    if rules.sub_pixel:
        return _given_place(full - 1 - number * step, size, cut_top, height)
    if rules.variant == "matlab":
        row = _half_away(height - number * step / shown * height) - 1
        y = _half_away(full - number * step) - 1
    else:
        row = np.trunc(height - number * step / shown * height - 1)
        y = np.trunc(full - number * step - 1)
    return Place(y, row, (row >= 0) & (y >= cut_top))


def _given_place(rows: np.ndarray, size: Size, cut_top: int, height: int) -> Place:
    """Arbitrary rows, relative to pixel centres."""
    y = np.asarray(rows, np.float64)
    row = (y - cut_top + 0.5) * height / (size[0] - cut_top) - 0.5
    return Place(y, row.clip(0, height - 1), (y >= cut_top) & (y <= size[0] - 1))


def _padded(places: list[Place], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows (B, R) float64 and seen (B, R) of images whose numbers of rows may differ."""
    longest = max(len(place.y) for place in places)
    row, seen = np.zeros((len(places), longest)), np.zeros((len(places), longest), bool)
    for number, place in enumerate(places):
        row[number, : len(place.row)] = np.where(place.seen, place.row, 0)
        seen[number, : len(place.seen)] = place.seen
    return torch.from_numpy(row).to(device), torch.from_numpy(seen).to(device)


def _profiles(maps: Tensor, row: Tensor, rules: LaneRules, *, quantised: bool) -> Tensor:
    """(B, L, R, w): smoothed maps (B, L, h, w) at rows (B, R), which may be fractional."""
    lower = row.floor()
    share = row - lower
    zeros = quantised  # Torch's convolution pads with zeros
    profiles = _smoothed_rows(maps, lower.long(), rules.smoothing, zeros=zeros)
    if share.any():
        upper = _smoothed_rows(maps, row.ceil().long(), rules.smoothing, zeros=zeros)
        profiles = torch.lerp(profiles, upper, share.to(maps)[:, None, :, None])
    # An image of Torch holds the integer part of 255 times the value.
    return (profiles * 255).floor().double() / 255 if quantised else profiles


def _smoothed_rows(maps: Tensor, row: Tensor, side: int, *, zeros: bool) -> Tensor:
    """(B, L, R, w): means over ``side`` x ``side`` boxes around whole rows (B, R) of the maps."""
    batch, lanes, height, width = maps.shape
    half = side // 2
    near = row.unsqueeze(-1) + torch.arange(-half, half + 1, device=row.device)
    image = torch.arange(batch, device=row.device).view(-1, 1, 1)
    boxes = maps.transpose(1, 2)[image, near.clamp(0, height - 1)]  # (B, R, side, L, w)
    if zeros:
        beyond = (near < 0) | (near >= height)
        boxes = boxes.masked_fill(beyond[..., None, None], 0)
    lines = boxes.mean(2).flatten(0, 1)  # (B·R, L, w)
    lines = F.pad(lines, (half, half), mode="constant" if zeros else "replicate")
    lines = F.avg_pool1d(lines, side, stride=1)
    return lines.view(batch, -1, lanes, width).transpose(1, 2)


def _centre_of_mass(profiles: Tensor, column: Tensor, side: int) -> Tensor:
    """(B, L, R) float64: mean column around each peak, weighted by the profile (B, L, R, w).

    Weights are values above half of the peak, so that background and ends of the window have no
    influence, and the result for a flat peak is its middle.
    """
    width = profiles.shape[-1]
    reach = max(side, width // 25)
    offset = torch.arange(-reach, reach + 1, device=column.device)
    near = column.unsqueeze(-1) + offset
    value = profiles.gather(-1, near.clamp(0, width - 1)).double()
    peak = value[..., reach : reach + 1]
    weight = (value - peak / 2).clamp(min=0).masked_fill((near < 0) | (near >= width), 0)
    total = weight.sum(-1)
    return column + (weight * offset).sum(-1) / torch.where(total > 0, total, 1)


def existing(
    x: Tensor,
    value: Tensor,
    kept: Tensor,
    exist: Tensor | None,
    places: list[Place],
    rules: LaneRules,
) -> list[Lanes]:
    """Drops lanes that do not exist or are too short, and moves the rest to the CPU at once.

    Args:
        x, value: (B, L, R) columns in pixels of the stored images, and the lanes' probabilities.
        kept: (B, L, R) bool, which of them are points.
        exist: (B, L) existence logits, or None.
        places: rows of each image, up to R.
        rules: thresholds.
    """
    number = kept.sum(-1)
    kept = kept & (number >= _FEWEST).unsqueeze(-1)
    scores = (value * kept).sum(-1) / kept.sum(-1).clamp(min=1)
    if exist is not None:
        scores = exist.to(x).sigmoid()
        kept = kept & (scores > rules.existence).unsqueeze(-1)
    own = x.masked_fill(~kept, torch.nan).cpu().numpy()
    existence = scores.float().cpu().numpy()
    return [
        Lanes(own[number, :, : len(place.y)], place.y, existence[number])
        for number, place in enumerate(places)
    ]


def _half_away(value: AnyArray) -> AnyArray:
    """Rounds positive numbers half away from zero, as Matlab does."""
    return np.floor(value + 0.5) if isinstance(value, np.ndarray) else (value + 0.5).floor()
