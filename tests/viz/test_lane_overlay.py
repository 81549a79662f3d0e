import numpy as np
import pytest

from segkd.data.lane_base import lane_classes, left_of_car
from segkd.viz.lane_overlay import draw_lanes, heat, side_panels, write_line

PALETTE = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], np.uint8)


def lane(x, top=20, bottom=99):
    y = np.arange(bottom, top, -10.0)
    return np.stack([np.full_like(y, x), y], axis=1)


def test_each_lane_has_the_colour_of_its_slot():
    image = np.full((100, 200, 3), 80, np.uint8)
    drawn = draw_lanes(image, [lane(30), None, lane(150), None], PALETTE)
    assert (image == 80).all()
    for x, color in ((30, 0), (150, 2)):
        column = drawn[54, x].astype(int)  # between two points
        assert column.argmax() == color and column[color] > 180
    assert (drawn[:, 90] == 80).all()


def test_the_road_between_the_middle_lanes_is_tinted():
    image = np.full((100, 200, 3), 80, np.uint8)
    lanes = [None, lane(50), lane(150, top=60), None]
    drawn = draw_lanes(image, lanes, PALETTE)
    assert (drawn[80, 100] != 80).any() and (drawn[40, 100] == 80).all()
    assert (draw_lanes(image, lanes, PALETTE, fill=False)[80, 100] == 80).all()


@pytest.mark.parametrize("left", [0, 1, 2, 3])
def test_the_road_between_the_lanes_beside_the_car_is_tinted(left):
    image = np.full((100, 300, 3), 80, np.uint8)
    drawn = draw_lanes(image, [lane(50), lane(150), lane(250)], PALETTE, left=left)
    tinted = [bool((drawn[80, x] != 80).any()) for x in (100, 200)]
    assert tinted == [left == 1, left == 2]


def test_names_say_how_many_slots_are_left_of_the_car():
    for number in range(2, 13):
        for left in range(number + 1):
            assert left_of_car(lane_classes(number, left)[1:]) == left
    assert left_of_car(["lane"]) == 0 and left_of_car(["a", "b", "c", "d"]) == 2


def test_pixels_are_painted():
    image = np.full((100, 200, 3), 80, np.uint8)
    pixels = np.zeros((100, 200), np.uint8)
    pixels[50] = 1
    drawn = draw_lanes(image, [None], PALETTE, pixels=pixels)
    assert drawn[50, 5].argmax() == 0 and drawn[50, 5, 0] > 150 and (drawn[49] == 80).all()


def test_points_far_outside_do_no_harm():
    far = np.array([[-1e9, 90.0], [50, 50], [1e9, 10]])
    draw_lanes(np.zeros((100, 200, 3), np.uint8), [far], PALETTE, ["left 0.5"])


def test_names_are_inside_of_small_pictures():
    image = np.zeros((60, 90, 3), np.uint8)
    drawn = draw_lanes(image, [lane(85, 10, 59)], PALETTE, ["right-right 0.98"])
    assert (drawn[:, :60] > 100).any()
    write_line(image, "25.0 fps")
    assert image.any()


def test_heat_goes_from_blue_to_red():
    image = np.full((40, 60, 3), 100, np.uint8)
    drawn = heat(image, np.array([[0.0, 1.0]]), strength=1.0)
    assert drawn[20, 2, 2] > drawn[20, 2, 0] and drawn[20, 57, 0] > drawn[20, 57, 2]


def test_panels_are_stacked_at_the_right():
    image = np.zeros((120, 200, 3), np.uint8)
    panels = {f"stage{n}": np.full((50, 70, 3), 60 * n, np.uint8) for n in (1, 2, 3)}
    sheet = side_panels(image, panels)
    assert sheet.shape[0] == 120 and 200 < sheet.shape[1] <= 300
    assert [sheet[40 * n + 30, -3, 0] for n in range(3)] == [60, 120, 180]
    assert side_panels(image, {}) is image


def test_texts_do_not_lie_on_each_other():
    image = np.full((200, 400, 3), 90, np.uint8)
    same = [lane(100, 20, 190), lane(102, 20, 190)]
    one = draw_lanes(image, same, PALETTE, ["left 0.9", ""])
    both = draw_lanes(image, same, PALETTE, ["left 0.9", "right 0.8"])
    bare = draw_lanes(image, same, PALETTE)
    first = (one != bare).any(2)
    second = (both != one).any(2)
    assert second.sum() > 50 and not (first & second).any()


def test_names_without_room_leave_the_others_legible():
    """A name that found no room above the others darkened them."""
    image = np.full((40, 160, 3), 200, np.uint8)
    lanes, palette = [lane(20 + n, 20, 39) for n in range(8)], np.full((8, 3), 255, np.uint8)
    one = draw_lanes(image, lanes, palette, ["left 0.98", *[""] * 7])
    many = draw_lanes(image, lanes, palette, ["left 0.98"] * 8)
    assert np.array_equal(one[30:], many[30:])
