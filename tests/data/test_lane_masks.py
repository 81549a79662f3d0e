import numpy as np
import pytest
from lane_trees import CENTRES, SIZE, lane

from segkd.data.lane_base import lane_classes, lane_palette
from segkd.data.lane_masks import (
    arranged,
    cleaned,
    curve,
    flagged,
    joined,
    painted,
    parts,
    present,
)


def feet(slots) -> list[float | None]:
    return [None if one is None else round(float(one[0, 0])) for one in slots]


def test_four_lanes_fill_four_slots_from_left_to_right():
    lanes = [lane(foot) for foot in CENTRES]
    slots = arranged([lanes[i] for i in (2, 0, 3, 1)], SIZE, 4)
    assert feet(slots) == list(CENTRES)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((50, 110), [None, 50, 110, None]),
        ((110, 180), [None, None, 110, 180]),
        ((-20, 50), [-20, 50, None, None]),
        ((50, 110, 180), [None, 50, 110, 180]),
        ((-90, -20, 50, 110), [-20, 50, 110, None]),  # the outermost has no slot
        ((50,), [None, 50, None, None]),
        ((), [None] * 4),
    ],
)
def test_slots_count_from_the_car(given, expected):
    assert feet(arranged([lane(foot) for foot in given], SIZE, 4)) == expected


def test_two_lanes_are_those_beside_the_car_in_culane():
    lanes = [lane(foot) for foot in (110, 180)]
    assert feet(arranged(lanes, SIZE, 4, pair_is_ego=True)) == [None, 110, 180, None]


def test_the_lean_decides_not_the_image_centre():
    """A camera that looks to the side moves both lanes, but not how they lean."""
    aside = np.array([45, 0])
    slots = arranged([lane(foot) + aside for foot in (50, 110)], SIZE, 4)
    assert feet(slots) == [None, 95, 155, None]


def test_an_upright_lane_belongs_to_its_side_of_the_image():
    for x, slot in ((60, 1), (100, 2)):
        upright = np.array([[x, 59], [x, 40], [x, 20]])
        assert feet(arranged([upright], SIZE, 4))[slot] == x


def test_six_slots_keep_five_lanes():
    slots = arranged([lane(foot) for foot in (-90, -20, 50, 110, 180)], SIZE, 6)
    assert feet(slots) == [-90, -20, 50, 110, 180, None]


@pytest.mark.parametrize("left", [0, 1, 2, 3])
def test_three_slots_around_the_car(left):
    feet_around = {-2: -20, -1: 50, 0: 110, 1: 180}
    slots = arranged([lane(foot) for foot in feet_around.values()], SIZE, 3, left)
    assert feet(slots) == [feet_around.get(place - left) for place in range(3)]


def test_the_slots_beside_the_car_lie_over_the_others():
    level = np.array([[0.0, 30.0], [159.0, 30.0]])
    for left, over in ((0, 1), (1, 1), (2, 2), (3, 3)):
        top = painted([level, level, level], SIZE, 4, left=left)[30, 80]
        assert top in (over, over + 1)
    assert painted([level, None, level], SIZE, 4, left=1)[30, 80] == 1
    assert painted([level, None, level], SIZE, 4, left=2)[30, 80] == 3


def test_flags_choose_the_slots():
    lanes = [lane(foot) for foot in (110, 180)]
    assert feet(flagged(lanes[::-1], (1, 0, 0, 1), SIZE)) == [110, None, None, 180]


def test_lanes_without_two_points_are_left_out():
    assert arranged([np.empty((0, 2)), np.array([[3.0, 4.0]])], SIZE, 4) == (None,) * 4


def test_cleaning_turns_lanes_upside_and_drops_repeats():
    points = np.array([[1, 2], [1, 2], [np.nan, 3], [4, 9]])
    assert cleaned(points).tolist() == [[4, 9], [1, 2]]


@pytest.mark.parametrize("width", [2, 8, 16])
def test_paint_is_as_wide_as_asked(width):
    upright = np.array([[80.0, 59.0], [80.0, 30.0], [80.0, 0.0]])
    mask = painted([None, upright], SIZE, width)
    columns = np.flatnonzero(mask[30] == 2)
    assert abs(len(columns) - width) <= 1 and abs(columns.mean() - 80) <= 0.5
    assert set(np.unique(mask)) == {0, 2}


def test_paint_follows_a_slanted_lane_below_a_pixel():
    """The painted pixels' distance from the true line, in all rows."""
    one = lane(50)
    mask = painted([one], SIZE, 6)
    for row in range(22, 58):
        true = np.interp(row, one[::-1, 1], one[::-1, 0])
        columns = np.flatnonzero(mask[row])
        assert abs(columns.mean() - true) < 0.6


def test_inner_lanes_lie_over_outer_ones():
    level = np.array([[0.0, 30.0], [159.0, 30.0]])
    mask = painted([level, level, None, level], SIZE, 4)
    assert set(np.unique(mask)) == {0, 2}


def test_the_curve_passes_through_its_points_and_is_smooth():
    points = np.array([[10.0, 50.0], [40.0, 30.0], [90.0, 20.0], [150.0, 18.0]])
    dense = curve(points)
    for point in points:
        assert np.hypot(*(dense - point).T).min() < 1e-3
    turns = np.abs(np.diff(np.unwrap(np.arctan2(*np.diff(dense, axis=0).T))))
    sharpest = np.abs(np.diff(np.unwrap(np.arctan2(*np.diff(points, axis=0).T)))).max()
    assert turns.max() < sharpest / 3


def test_far_away_points_are_survived():
    lanes = [np.array([[-1e6, 1e6], [80.0, 30.0], [1e6, -1e6]]), np.array([[5.0, 5.0], [5.0, 5.0]])]
    assert painted(lanes, SIZE, 16, curved=False).shape == SIZE


def test_lines_of_one_slot_are_parted():
    both = joined([lane(50), lane(110)])
    assert len(parts(both)) == 2 and joined([]) is None and parts(None) == []
    mask = painted([both], SIZE, 3, curved=False)
    assert not mask[20:50, 78:82].any() and present(mask, 1).all()  # nothing between them


def test_names_and_colours():
    assert lane_classes(4)[1:] == ("left-left", "left", "right", "right-right")
    assert lane_classes(6)[1:] == ("left 3", "left 2", "left 1", "right 1", "right 2", "right 3")
    assert lane_classes(3)[1:] == ("left 1", "right 1", "right 2")
    assert lane_classes(4, 3)[1:] == ("left 3", "left 2", "left 1", "right 1")
    assert lane_classes(3, 0)[1:] == ("right 1", "right 2", "right 3")
    for number in (1, 3, 4, 6, 8, 12):
        for left in (None, 0, 1, number):
            assert len(lane_classes(number, left)) == len(lane_palette(number, left)) == number + 1
            assert len(np.unique(lane_palette(number, left), axis=0)) == number + 1
    assert (lane_palette(4, 3)[3:5] == lane_palette(4)[2:4]).all()
    assert (lane_palette(6)[3:5] == lane_palette(4)[2:4]).all()  # the car's own lanes look alike
