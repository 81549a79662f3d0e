import itertools
import math

import pytest
import torch

from segkd.ops.row_cells import (
    NONE,
    UNKNOWN,
    at_cells,
    cell_shares,
    cell_targets,
    crossings,
    expected_cells,
    map_at_rows,
)

ROWS = (0.25, 0.5, 0.75, 0.95)
SIZE = (40, 100)
NAN = math.nan


def crossing(points, y):
    """x where a polyline first crosses a row, by its segments; None if it does not."""
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if math.isnan(x0 + x1 + y0 + y1) or not min(y0, y1) <= y <= max(y0, y1):
            continue
        return x0 if y0 == y1 else x0 + (x1 - x0) * (y - y0) / (y1 - y0)
    return None


def test_crossings_are_those_of_each_segment():
    draw = torch.Generator().manual_seed(3)
    lanes = 100 * torch.rand(3, 4, 7, 2, generator=draw, dtype=torch.float64)
    lanes[0, 1, 4:] = NAN  # a shorter lane
    lanes[1, 2, 3] = NAN  # two lines
    lanes[2, 3] = NAN  # none
    lanes[2, 2, 2, 1] = lanes[2, 2, 1, 1]  # a level piece
    y = torch.tensor([5.0, 33.0, 60.5, float(lanes[2, 2, 1, 1])], dtype=torch.float64)
    found = crossings(lanes, y)
    for b in range(3):
        for lane in range(4):
            for r in range(4):
                expected = crossing(lanes[b, lane].tolist(), float(y[r]))
                value = float(found[b, lane, r])
                assert math.isnan(value) if expected is None else value == pytest.approx(expected)


def test_lanes_without_points_cross_nothing():
    assert crossings(torch.zeros(2, 3, 1, 2), torch.tensor([1.0])).isnan().all()
    assert crossings(torch.zeros(2, 3, 0, 2), torch.tensor([1.0])).isnan().all()


def lane(x_of_y):
    return [[x_of_y(y), float(y)] for y in range(0, 41, 4)]


def targets(lane_points, exist=1.0, not_padding=None, cells=10):
    inside = torch.ones(1, *SIZE, dtype=torch.bool) if not_padding is None else not_padding
    lanes = torch.tensor([[lane_points]], dtype=torch.float32)
    found = cell_targets(lanes, torch.tensor([[exist]]), inside, ROWS, cells)
    return found[0, 0].tolist()


def test_the_cell_is_where_the_lane_crosses_the_row():
    # rows of 40 pixels: y = 9.5, 19.5, 29.5, 37.5; cells of 10 pixels
    assert targets(lane(lambda y: 2 * y)) == [1, 3, 5, 7]
    # the left border of cell 3 is at x = 29.5
    assert targets(lane(lambda y: 29.49)) == [2] * 4
    assert targets(lane(lambda y: 29.51)) == [3] * 4


def test_outside_of_the_image_a_lane_is_nowhere():
    assert targets(lane(lambda y: 5 * y - 60)) == [NONE, 3, 8, NONE]
    assert targets([[NAN, NAN]] * 3, exist=0.0) == [NONE] * 4


def test_padding_and_images_without_labels_are_unknown():
    assert targets(lane(lambda y: 2 * y), exist=NAN) == [UNKNOWN] * 4
    inside = torch.ones(1, *SIZE, dtype=torch.bool)
    inside[:, 31:] = False  # the last row at y = 37.5
    inside[:, :, :25] = False  # the first at x = 19
    assert targets(lane(lambda y: 2 * y), not_padding=inside) == [UNKNOWN, 3, 5, UNKNOWN]
    # an absent lane is absent where part of the row is seen
    assert targets([[NAN, NAN]] * 3, 0.0, inside) == [NONE, NONE, NONE, UNKNOWN]


def test_shares_are_a_softmax_with_none():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, generator=draw, dtype=torch.float64)
    found = cell_shares(logits)
    for b in range(2):
        for one in range(2):
            for r in range(4):
                odds = [
                    math.exp(float(logits[b, one + 1, r, c] - logits[b, 0, r, c])) for c in range(5)
                ]
                for c in range(5):
                    assert float(found[b, one, r, c]) == pytest.approx(odds[c] / (1 + sum(odds)))
    cells = expected_cells(found)
    mean = (found[0, 1, 2] * torch.arange(5)).sum() / found[0, 1, 2].sum()
    torch.testing.assert_close(cells[0, 1, 2], mean)
    assert expected_cells(torch.zeros(3, 5)).tolist() == [0.0] * 3


@pytest.mark.parametrize("size", [(40, 100), (20, 50), (10, 20), (80, 200)])
def test_a_map_is_read_at_the_places_of_rows_and_cells(size):
    """On a linear ramp in pixels of the image, each cell has the value of its centre."""
    height, width = size
    y = (torch.arange(height, dtype=torch.float64) + 0.5) * 40 / height - 0.5
    x = (torch.arange(width, dtype=torch.float64) + 0.5) * 100 / width - 0.5
    ramp = (y[:, None] + 100 * x)[None, None]
    found = map_at_rows(ramp, ROWS, 25)[0, 0]
    centres = (torch.arange(25, dtype=torch.float64) + 0.5) * 4 - 0.5
    inner = slice(2, -2) if width < 25 else slice(None)  # beyond its last pixels a map is constant
    for number, share in enumerate(ROWS):
        level = min(share * 40 - 0.5, float(y[-1]))
        torch.testing.assert_close(found[number][inner], level + 100 * centres[inner])


def test_masks_are_taken_at_the_nearest_pixel():
    values = torch.arange(40 * 100).view(1, 40, 100)
    found = at_cells(values, ROWS, 25)[0]
    assert found[0, 0] == 10 * 100 + 2 and found[3, 24] == 38 * 100 + 98
