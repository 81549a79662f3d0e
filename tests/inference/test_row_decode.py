"""Lanes of networks that classify rows, from their logits to points."""

import numpy as np
import pytest
import torch
from torch import nn

from segkd.config.schema import LaneRules
from segkd.errors import SegKDError
from segkd.inference.lane_maps import lane_maps
from segkd.inference.row_decode import decode_lanes
from segkd.inference.views import views
from segkd.structures import Outputs

ROWS = tuple(np.linspace(0.4, 1.0, 13))
CELLS = 80
SIZE = (590, 1640)
EVERY = range(len(ROWS))


class Told(nn.Module):
    """Returns given logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, images, taps=()):
        return Outputs(self.logits, rows=ROWS)


def logits_at(x_of_share, rows=EVERY, width=SIZE[1]):
    """(1, 3, R, G): the first lane's mass on two cells whose mean is x; the second is absent."""
    logits = torch.full((1, 3, len(ROWS), CELLS), -20.0)
    logits[:, 0] = 0
    for r in rows:
        place = (x_of_share(ROWS[r]) + 0.5) * CELLS / width - 0.5
        low = int(place)
        for cell, share in ((low, 1 - (place - low)), (low + 1, place - low)):
            logits[0, 1, r, cell] = 5 + np.log(max(share, 1e-6))
    return logits


def found(logits, **options):
    maps = lane_maps(Told(logits), torch.zeros(1, 3, 32, 64, dtype=torch.uint8))
    (lanes,) = decode_lanes(maps, [SIZE], options.pop("rules", None), **options)
    return lanes


def line(share):
    return 1500 - 1300 * share


def test_points_are_expected_cells_at_the_rows_of_the_network():
    lanes = found(logits_at(line))
    y = np.array(ROWS) * 590 - 0.5
    np.testing.assert_allclose(lanes.y, y)
    np.testing.assert_allclose(lanes.x[0], line(np.array(ROWS)), atol=0.01)
    assert lanes.points[1] is None and len(lanes.found) == 1
    assert lanes.points[0][0, 1] > lanes.points[0][-1, 1], "points go from bottom to top"
    assert lanes.scores[0] > 0.98 and lanes.scores[1] == 0


def test_the_rows_above_the_cut_are_not_seen():
    lanes = found(logits_at(line), cut_top=190)
    np.testing.assert_allclose(lanes.y, 190 + np.array(ROWS) * 400 - 0.5)


def test_rows_in_which_none_is_more_probable_have_no_point():
    lanes = found(logits_at(line, rows=range(4, 9)))
    assert (~np.isnan(lanes.x[0])).nonzero()[0].tolist() == [4, 5, 6, 7, 8]
    assert not found(logits_at(line, rows=[4])).found, "one point is no lane"
    weak = logits_at(line)
    weak[:, 1] -= 5.5  # together the cells have 1 / (1 + e^0.5) = 0.38
    assert not found(weak).found
    assert len(found(weak, rules=LaneRules(existence=0.3)).found) == 1


def test_given_rows_are_interpolated_and_ends_continued_by_half_a_distance():
    y = np.arange(150.0, 590.0, 10.0)
    lanes = found(logits_at(line, rows=range(2, 11)), rows=[y])
    np.testing.assert_array_equal(lanes.y, y)
    own = np.array(ROWS) * 590 - 0.5
    nearest = np.abs(y[:, None] - own).argmin(1)
    there = (nearest >= 2) & (nearest <= 10)
    np.testing.assert_array_equal(~np.isnan(lanes.x[0]), there)
    np.testing.assert_allclose(lanes.x[0][there], line((y[there] + 0.5) / 590), atol=0.01)


def test_a_lane_is_not_continued_beyond_the_image():
    lanes = found(
        logits_at(lambda share: 1620 - 1900 * (1 - share)), rows=[np.arange(230.0, 590.0, 2.0)]
    )
    assert np.nanmax(lanes.x[0]) <= 1639.5 and np.nanmin(lanes.x[0]) >= -0.5


def test_rows_are_no_label_map():
    with pytest.raises(SegKDError, match=r"labels no pixels\. Use `segkd lane`"):
        views(Told(logits_at(line)), torch.zeros(1, 3, 32, 64, dtype=torch.uint8), None)
