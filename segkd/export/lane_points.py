"""Decoding of lanes as part of an exported network: logits in, points out.

The same as ``inference.lane_decode`` and ``inference.row_decode``, in operators that devices have:
float32 alone, tables instead of rounding, no loops, and only the rows of the map that are needed.
All sizes but the batch are fixed, so that rows and tables are computed here, by the same functions.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkd.config.schema import LaneRules
from segkd.inference.lane_decode import Place, across, place_of
from segkd.inference.lane_output import ABSENT, BAKED
from segkd.inference.lane_view import LaneView
from segkd.ops.row_cells import cell_shares, expected_cells

Size = tuple[int, int]
_FEWEST = 2  # points of a lane
_PARTS = ("first", "second", "share")


class MapPoints(nn.Module):
    """Points of lanes from a map of logits; see ``inference.lane_decode``.

    Args:
        view: of the camera.
        metric: of the training set.
        rules: of decoding.
        size: (H, W) of the map before decoding, which is that of the network's input.
        padded: (H, W) of the network's input, at least ``size``.
        logits: (h, w) of the logits.
    """

    averaging: Tensor
    edges: Tensor
    seen: Tensor
    y: Tensor
    x_of_column: Tensor

    def __init__(
        self,
        view: LaneView,
        metric: str,
        rules: LaneRules,
        size: Size,
        padded: Size,
        logits: Size,
    ) -> None:
        super().__init__()
        given = view.rows(metric)
        self.exact = rules.sub_pixel or given is not None
        self.quantised = rules.variant == "matlab" and not self.exact
        self.rules, self.width = rules, size[1]
        place = place_of(view.road, rules, size[0], view.cut, given)
        order = np.argsort(-place.y, kind="stable")  # from bottom to top
        place = Place(place.y[order], place.row[order], place.seen[order])
        self.mixed: dict[str, bool] = {}
        needed, averaging = _box_rows(place, size[0], rules.smoothing, zeros=self.quantised)
        self.register_buffer("averaging", averaging)
        for name, positions, inside, length in (
            ("row", needed, padded[0], logits[0]),
            ("column", np.arange(size[1]), padded[1], logits[1]),
        ):
            first, second, share = _neighbours(positions, length / inside, length)
            self.mixed[name] = bool(share.any())
            self.register_buffer(f"{name}_first", first)
            self.register_buffer(f"{name}_second", second)
            self.register_buffer(f"{name}_share", share)
        half = rules.smoothing // 2
        edges = torch.arange(-half, size[1] + half).clamp(0, size[1] - 1)
        self.register_buffer("edges", edges)
        self.register_buffer("seen", torch.from_numpy(place.seen))
        self.register_buffer("y", torch.from_numpy(place.y + view.top).float())
        self.scale = view.road[1] / size[1]
        columns = torch.arange(size[1])[None, None]
        plain = rules.model_copy(update={"sub_pixel": False})
        width = torch.tensor([[[float(view.road[1])]]], dtype=torch.float64)
        table = across(columns, columns, width, plain, exact=self.exact)
        self.register_buffer("x_of_column", table.flatten().float())

    def forward(self, logits: Tensor, exist: Tensor | None) -> tuple[Tensor, Tensor]:
        """Points (B, L, R, 2) and existence (B, L) of logits (B, L+1, h, w)."""
        logits = self._at(self._at(logits, 3, "column"), 2, "row")
        lines = self.averaging @ logits.softmax(1)[:, 1:]  # (B, L, R, w)
        side = self.rules.smoothing
        if self.quantised:
            lines = F.pad(lines, (side // 2, side // 2))
        else:
            lines = lines.index_select(3, self.edges)
        profiles = F.avg_pool2d(lines, (1, side), stride=1)
        if self.quantised:
            profiles = (profiles * 255).floor() / 255
        column = profiles.argmax(3)
        value = profiles.amax(3)
        kept = (value > self.rules.threshold) & self.seen
        if self.rules.sub_pixel:
            x = (self._centre_of_mass(profiles, column) + 0.5) * self.scale - 0.5
        else:
            x = self.x_of_column[column]
        if self.rules.variant == "python" and not self.exact:
            kept = kept & (x > 0)
        return points_of(x, self.y, value, kept, exist, self.rules)

    def _at(self, logits: Tensor, axis: int, name: str) -> Tensor:
        """Logits at the needed rows or columns, by linear interpolation."""
        first, second, share = (getattr(self, f"{name}_{part}") for part in _PARTS)
        if not self.mixed[name]:
            same = len(first) == logits.shape[axis]
            return logits if same else logits.index_select(axis, first)
        share = share.unsqueeze(1) if axis == 2 else share
        below = logits.index_select(axis, first)
        return torch.lerp(below, logits.index_select(axis, second), share)

    def _centre_of_mass(self, profiles: Tensor, column: Tensor) -> Tensor:
        """(B, L, R): as in ``inference.lane_decode``."""
        reach = max(self.rules.smoothing, self.width // 25)
        offset = torch.arange(-reach, reach + 1, device=column.device)
        near = column.unsqueeze(3) + offset
        inside = (near >= 0) & (near < self.width)
        value = profiles.gather(3, near.clamp(0, self.width - 1))
        peak = profiles.amax(3, keepdim=True)
        weight = (value - peak / 2).clamp(min=0) * inside
        total = weight.sum(3)
        moved = (weight * offset).sum(3) / torch.where(total > 0, total, 1.0)
        return column + moved


class RowPoints(nn.Module):
    """Points of lanes from the logits of rows; see ``inference.row_decode``.

    Args:
        view: of the camera.
        metric: of the training set.
        rules: of decoding.
        rows: heights of the network's rows as shares.
        cells: of a row.
    """

    y: Tensor
    own_y: Tensor
    wanted: Tensor
    nearest: Tensor
    near: Tensor
    above: Tensor
    up_to: Tensor
    order: Tensor

    def __init__(
        self, view: LaneView, metric: str, rules: LaneRules, rows: tuple[float, ...], cells: int
    ) -> None:
        super().__init__()
        self.rules, self.scale, self.width = rules, view.road[1] / cells, view.road[1]
        own = view.cut + np.asarray(rows) * (view.road[0] - view.cut) - 0.5
        given = view.rows(metric)
        self.given = given is not None
        wanted = (own if given is None else given)[::-1].copy()
        self.register_buffer("y", torch.from_numpy(wanted + view.top).float())
        self.register_buffer("own_y", torch.from_numpy(own).float())
        self.register_buffer("wanted", torch.from_numpy(wanted).float())
        nearest = np.abs(wanted[:, None] - own).argmin(1)
        near = np.abs(wanted - own[nearest]) <= (own[-1] - own[0]) / (len(own) - 1)
        self.register_buffer("nearest", torch.from_numpy(nearest))
        self.register_buffer("near", torch.from_numpy(near))
        self.register_buffer("above", torch.from_numpy(own[:, None] < wanted).float())
        self.register_buffer("up_to", torch.ones(len(own), len(own)).triu())
        self.register_buffer("order", torch.arange(len(own)).flip(0))

    def forward(self, logits: Tensor, exist: Tensor | None) -> tuple[Tensor, Tensor]:
        """Points (B, L, R', 2) and existence (B, L) of logits (B, L+1, R, G)."""
        shares = cell_shares(logits)
        chance = shares.sum(3)
        there = chance > self.rules.existence
        x = (expected_cells(shares) + 0.5) * self.scale - 0.5
        number = there.sum(2)
        score = (chance * there).sum(2) / number.clamp(min=1)
        if self.given:
            x, kept = self._interpolated(x, there)
        else:
            x, kept = x.index_select(2, self.order), there.index_select(2, self.order)
        value = score.unsqueeze(2).expand_as(x)
        return points_of(x, self.y, value, kept, exist, self.rules)

    def _interpolated(self, x: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, L, R') at the wanted rows, and where lanes are; x (B, L, R) at those ``there``."""
        present = there.to(x)
        number = present.sum(2, keepdim=True)
        rank = present @ self.up_to - 1  # of each row among those with the lane
        after = (present @ self.above).clamp(min=1).minimum(number - 1)
        x0, y0 = self._at(after - 1, rank, present, x)
        x1, y1 = self._at(after, rank, present, x)
        rise = y1 - y0
        slope = (x1 - x0) / torch.where(rise > 0, rise, 1.0)
        found = x0 + slope * (self.wanted - y0)
        shown = there.index_select(2, self.nearest) & self.near & (number >= _FEWEST)
        return found, shown & (found >= -0.5) & (found <= self.width - 0.5)

    def _at(self, place: Tensor, rank: Tensor, present: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """x and y (B, L, R') of the rows of a rank (B, L, R') among those with the lane."""
        same = (rank.unsqueeze(2) == place.unsqueeze(3)).to(x) * present.unsqueeze(2)
        return (same * x.unsqueeze(2)).sum(3), (same * self.own_y).sum(3)


def points_of(
    x: Tensor, y: Tensor, value: Tensor, kept: Tensor, exist: Tensor | None, rules: LaneRules
) -> tuple[Tensor, Tensor]:
    """Points (B, L, R, 2), x ``ABSENT`` in rows without, and existence (B, L).

    Args:
        x, value: (B, L, R) columns, and the lanes' probabilities.
        y: (R,) rows.
        kept: (B, L, R) bool, which of them are points.
        exist: (B, L) existence logits, or None.
        rules: thresholds.
    """
    kept = kept & (kept.sum(2, keepdim=True) >= _FEWEST)
    if exist is None:
        existence = (value * kept).sum(2) / kept.sum(2).clamp(min=1)
    else:
        existence = exist.sigmoid()
        kept = kept & (existence > rules.existence).unsqueeze(2)
    across = torch.where(kept, x, ABSENT)
    return torch.stack([across, y.expand_as(across)], 3), existence


def lane_facts_of(view: LaneView, rules: LaneRules, *, whole: bool) -> dict[str, Any]:
    """What the file says of its lanes."""
    return {
        "camera": list(view.camera),
        "top": view.top,
        "cut": view.cut,
        "trained": list(view.trained),
        "whole": whole,
        "absent": ABSENT,
        "rules": {key: getattr(rules, key) for key in BAKED},
    }


def points_module(
    view: LaneView,
    facts: Mapping[str, Any],
    rules: LaneRules,
    sizes: tuple[Size, Size, Size],
    rows: tuple[float, ...],
) -> nn.Module:
    """The module that decodes the logits of a network.

    Args:
        view: of the camera.
        facts: the entry ``lanes`` of the student's file.
        rules: of decoding.
        sizes: (H, W) of the map, of the padded input, and of the logits.
        rows: of a network that classifies rows; empty: of one with a map.
    """
    if rows:
        return RowPoints(view, facts["metric"], rules, rows, sizes[2][1])
    return MapPoints(view, facts["metric"], rules, *sizes)


def _box_rows(place: Place, height: int, side: int, *, zeros: bool) -> tuple[np.ndarray, Tensor]:
    """The rows (n,) of the map that are needed, and the matrix (R, n) that averages them.

    Rows between two rows of the map are mixed of both.
    """
    dense = np.zeros((len(place.row), height))
    row = np.where(place.seen, place.row, 0)
    lower = np.floor(row)
    for offset in range(-(side // 2), side // 2 + 1):
        for start, weight in ((lower, 1 - (row - lower)), (np.ceil(row), row - lower)):
            near = start.astype(int) + offset
            if zeros:
                weight = weight * ((near >= 0) & (near < height))
            np.add.at(dense, (np.arange(len(row)), near.clip(0, height - 1)), weight / side)
    needed = np.flatnonzero(dense.any(0))
    return needed, torch.from_numpy(dense[:, needed]).float()


def _neighbours(positions: np.ndarray, scale: float, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Both source positions of each target, and the weight of the second."""
    where = ((positions + 0.5) * scale - 0.5).clip(0, length - 1)
    first = np.floor(where).astype(int)
    second = (first + 1).clip(max=length - 1)
    share = torch.from_numpy(where - first).float()
    return torch.from_numpy(first), torch.from_numpy(second), share
