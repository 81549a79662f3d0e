"""From the rows of a network that classifies them to lane points.

As in Qin, Wang, Li: Ultra Fast Structure-aware Deep Lane Detection, ECCV 2020, arXiv 2004.11757:
x is the expected cell of the row, given that the lane is there. A lane is in a row if its
probability of "not in this row" is below one half (``rules.existence``: 1 minus it is above), and
exists with two rows or more.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from segkd.config.schema import LaneRules
from segkd.inference.lane_decode import Lanes, Place, Size, decode, existing, fitted
from segkd.inference.lane_maps import LaneMaps
from segkd.ops.row_cells import expected_cells


def decode_lanes(
    maps: LaneMaps,
    sizes: Sequence[Size],
    rules: LaneRules | None = None,
    *,
    cut_top: int = 0,
    rows: Sequence[np.ndarray] | None = None,
) -> list[Lanes]:
    """Lanes of each image of a batch, from maps or rows.

    Args:
        maps: of the images.
        sizes: (H, W) of each stored image, including ``cut_top``.
        rules: thresholds, variant and fit; of rows, ``existence`` and the fit apply.
        cut_top: rows at the top of the stored images that the network did not see.
        rows: (R',) y at which each image's lanes are wanted, in pixels of the stored image; None:
            CULane's 18, or the rows of a network that classifies rows.

    Returns:
        One ``Lanes`` per image.
    """
    if not maps.rows:
        known = (maps.probabilities, maps.exist, sizes)
        return decode(*known, rules, cut_top=cut_top, rows=rows)
    rules = rules or LaneRules()
    shares = maps.probabilities[:, 1:].double()
    present = shares.sum(3)
    widths = torch.tensor([size[1] for size in sizes], dtype=torch.float64, device=shares.device)
    x = (expected_cells(shares) + 0.5) * widths.view(-1, 1, 1) / shares.shape[3] - 0.5
    found = [
        _at_rows(maps, x[number], present[number] > rules.existence, size, cut_top, rows, number)
        for number, size in enumerate(sizes)
    ]
    longest = max(len(place.y) for _, place in found)
    across = torch.full((*x.shape[:2], longest), torch.nan, dtype=torch.float64)
    for number, (own, place) in enumerate(found):
        across[number, :, : len(place.y)] = own
    across = across.to(x)
    score = (present * (present > rules.existence)).sum(2) / (present > rules.existence).sum(2)
    value = score.nan_to_num(0).unsqueeze(2).expand(across.shape)
    places = [place for _, place in found]
    lanes = existing(across, value, ~across.isnan(), maps.exist, places, rules)
    return [fitted(one, size[1], rules) for one, size in zip(lanes, sizes, strict=True)]


def _at_rows(
    maps: LaneMaps,
    x: Tensor,
    present: Tensor,
    size: Size,
    cut_top: int,
    rows: Sequence[np.ndarray] | None,
    number: int,
) -> tuple[Tensor, Place]:
    """x (L, R') of an image's lanes at the wanted rows, NaN where a lane is absent; and the rows.

    Args:
        maps: of the batch, for the heights of its rows.
        x, present: (L, R) of the network's rows.
        size, cut_top: as of ``decode_lanes``.
        rows: as of ``decode_lanes``.
        number: of the image.
    """
    own_y = cut_top + np.asarray(maps.rows) * (size[0] - cut_top) - 0.5
    own_x = np.where(present.cpu().numpy(), x.cpu().numpy(), np.nan)
    if rows is None:
        y, across = own_y, own_x
    else:
        y = np.asarray(rows[number], np.float64)
        across = np.stack([_interpolated(lane, own_y, y) for lane in own_x])
        across[(across < -0.5) | (across > size[1] - 0.5)] = np.nan  # continued beyond the image
    return torch.from_numpy(across), Place(y, y, np.ones(len(y), bool))


def _interpolated(x: np.ndarray, y: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """x (R',) of a lane at other rows, by straight lines between rows where it is.

    A lane is in a wanted row if it is in the nearest row of the network, at most one distance of
    rows away; its ends are continued as straight lines.

    Args:
        x: (R,), NaN where the lane is absent.
        y: (R,), ascending.
        wanted: (R',).
    """
    there = ~np.isnan(x)
    if there.sum() < 2:
        return np.full(len(wanted), np.nan)
    nearest = np.abs(wanted[:, None] - y).argmin(1)
    step = (y[-1] - y[0]) / (len(y) - 1)
    shown = there[nearest] & (np.abs(wanted - y[nearest]) <= step)
    known_y, known_x = y[there], x[there]
    after = np.searchsorted(known_y, wanted).clip(1, len(known_y) - 1)
    slope = (known_x[after] - known_x[after - 1]) / (known_y[after] - known_y[after - 1])
    found = known_x[after - 1] + slope * (wanted - known_y[after - 1])
    return np.where(shown, found, np.nan)
