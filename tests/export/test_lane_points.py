"""Decoding inside an exported file: the same points and existence as by `segkd lane`."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segkd.config.schema import LaneRules
from segkd.export.lane_points import ABSENT, MapPoints, RowPoints
from segkd.inference.lane_maps import LaneMaps, lane_maps
from segkd.inference.lane_view import lane_view
from segkd.inference.row_decode import decode_lanes
from segkd.ops.row_cells import cell_shares
from segkd.structures import Outputs

LANES = 4


def ridges(height, width, batch=3, seed=0):
    """Logits (B, L+1, height, width) with a ridge for each lane, some of them broken or absent."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.linspace(0, 1, height)[:, None]
    x = torch.linspace(0, 1, width)
    maps = [torch.zeros(batch, height, width)]
    for _ in range(LANES):
        foot, bend, tall = torch.rand(3, batch, 1, 1, generator=draw)
        middle = foot + (bend - 0.5) * (1 - y)
        ridge = 8 - (x - middle).abs() * 150
        maps.append(ridge.where(y > tall * 1.2 - 0.3, -9.0))
    noise = torch.rand(batch, LANES + 1, height, width, generator=draw)
    return torch.stack(maps, 1) + noise


class Fixed(torch.nn.Module):
    """Answers what it was given."""

    def __init__(self, logits, exist, divisor, rows=()):
        super().__init__()
        self.found, self.divisor = Outputs(logits, exist=exist, rows=rows), divisor

    def forward(self, images):
        return self.found


def expected(network, size, view, metric, rules):
    images = torch.zeros(len(network.found.logits), 3, *size, dtype=torch.uint8)
    maps = lane_maps(network, images)
    rows = view.rows(metric)
    wanted = None if rows is None else [rows] * len(images)
    return decode_lanes(maps, [view.road] * len(images), rules, cut_top=view.cut, rows=wanted)


def same(points, existence, lanes, top):
    some = 0
    for one, scores, decoded in zip(points, existence, lanes, strict=True):
        np.testing.assert_allclose(scores.numpy(), decoded.scores, atol=1e-5)
        assert (np.diff(one[0, :, 1].numpy()) < 0).all(), "from bottom to top"
        for slot, lane in enumerate(decoded.points):
            found = one[slot][one[slot, :, 0] != ABSENT].numpy()
            if lane is None:
                assert not len(found)
                continue
            some += len(lane)
            np.testing.assert_allclose(found, lane + np.array([0, top]), atol=1e-3)
    assert some > 30, "the test sees points"


VIEWS = [
    # size, cut_top, camera, logits, divisor
    ((144, 400), 0, (590, 1640), (144, 400), 8),
    ((104, 488), 240, (590, 1640), (13, 61), 8),
    ((100, 396), 0, (720, 1280), (52, 200), 8),  # padded, coarse, cut by the aspect ratio
]
RULES = [
    {},
    {"variant": "matlab"},
    {"variant": "matlab", "smoothing": 1, "threshold": 0.6},
    {"sub_pixel": True},
    {"existence": 0.6, "smoothing": 5},
]


@pytest.mark.parametrize(("size", "cut", "camera", "logits", "divisor"), VIEWS)
@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize(("metric", "branch"), [("culane", True), ("tusimple", False)])
def test_maps(size, cut, camera, logits, divisor, rules, metric, branch):
    rules = LaneRules(**rules)
    facts = {"metric": metric, "size": [590, 1640], "cut_top": cut}
    view = lane_view(facts, camera)
    padded = tuple(-(-side // divisor) * divisor for side in size)
    found = F.interpolate(ridges(*padded), logits, mode="bilinear", antialias=True)
    exist = (
        torch.randn(3, LANES, generator=torch.Generator().manual_seed(1)) + 2 if branch else None
    )
    network = Fixed(found, exist, divisor)
    module = MapPoints(view, metric, rules, size, padded, logits)
    points, existence = module(found, exist)
    assert points.dtype == existence.dtype == torch.float32
    same(points, existence, expected(network, size, view, metric, rules), view.top)


@pytest.mark.parametrize("metric", ["culane", "tusimple"])
@pytest.mark.parametrize("branch", [True, False])
@pytest.mark.parametrize("camera", [(590, 1640), (720, 1280)])
def test_rows(metric, branch, camera):
    rules, draw = LaneRules(existence=0.4), torch.Generator().manual_seed(2)
    facts = {"metric": metric, "size": [590, 1640], "cut_top": 100}
    view = lane_view(facts, camera)
    rows = tuple(np.linspace(0.35, 0.99, 12))
    logits = ridges(12, 50, batch=6)
    logits[2, :, 5] = 0.0  # a row in the middle is missing
    logits[0, 1, 2:] = -20.0  # few rows, one row, no row
    logits[0, 2, 1:] = -20.0
    logits[0, 3] = -20.0
    exist = torch.randn(6, LANES, generator=draw) + 1 if branch else None
    module = RowPoints(view, metric, rules, rows, 50)
    points, existence = module(logits, exist)
    maps = LaneMaps(F.pad(cell_shares(logits), (0, 0, 0, 0, 1, 0)), exist, {}, rows)
    given = view.rows(metric)
    lanes = decode_lanes(
        maps,
        [view.road] * 6,
        rules,
        cut_top=view.cut,
        rows=None if given is None else [given] * 6,
    )
    same(points, existence, lanes, view.top)
