from dataclasses import replace

import numpy as np
import pytest

from segkd.errors import ConfigError
from segkd.inference.lane_track import LaneTracker
from segkd.inference.lane_types import Lane

WIDTH = 960
ROWS = np.arange(530.0, 330, -10)  # from bottom to top


def lane(foot, slot=0, noise=0.0, draw=None, rows=ROWS):
    x = foot + (480 - foot) * (540 - rows) / 240
    if noise:
        x = x + draw.normal(0, noise) + draw.normal(0, noise, len(rows))
    return Lane(slot, f"slot {slot}", np.stack([x, rows], 1), 0.9)


def test_numbers_stay_over_a_change_of_lanes():
    """All lines move to the left by a whole lane, so that each slot gets another line."""
    tracker, seen = LaneTracker(), []
    for frame in range(75):
        feet = np.array([-260, 100, 460, 820, 1180]) + 200 - 360 * frame / 75
        shown = [foot for foot in feet if -300 < foot < 1260][:4]
        found = tracker([lane(f, slot) for slot, f in enumerate(shown)], WIDTH)
        seen.append({one.track: (round(float(one.points[0, 0])), one.slot) for one in found})
    slots = {number: {frame[number][1] for frame in seen if number in frame} for number in (2, 3)}
    assert all(len(found) > 1 for found in slots.values())  # slots changed
    for number in (2, 3, 4):
        places = [frame[number][0] for frame in seen if number in frame]
        assert len(places) > 60 and np.abs(np.diff(places)).max() < 12


def test_an_even_motion_is_followed_without_delay():
    tracker = LaneTracker(memory=0.9)
    for frame in range(60):
        true = lane(300 + 4 * frame)
        (found,) = tracker([true], WIDTH)
    np.testing.assert_allclose(found.points, true.points, atol=0.05)


def test_noise_is_less_and_memory_none_changes_nothing():
    jitter = {}
    for memory in (0.0, 0.8):
        draw, tracker, feet = np.random.default_rng(0), LaneTracker(memory=memory), []
        for _ in range(200):
            given = lane(300, noise=3.0, draw=draw)
            (found,) = tracker([given], WIDTH)
            feet.append(found.points[:, 0])
            if not memory:
                np.testing.assert_allclose(found.points, given.points)
        jitter[memory] = np.abs(np.diff(feet[20:], axis=0)).mean()
    assert jitter[0.8] < 0.3 * jitter[0.0]


def test_lost_lanes_are_held_then_dropped_and_found_again():
    tracker, both = LaneTracker(patience=0.5), [lane(200), lane(700, 1)]
    for _ in range(10):
        tracker(both, WIDTH)
    shown = [tracker(both[:1], WIDTH) for _ in range(10)]
    assert [(one.track, one.seen) for one in shown[-1]] == [(1, True), (2, False)]
    np.testing.assert_allclose(shown[-1][1].points, both[1].points, atol=1)
    assert [one.track for one in tracker(both, WIDTH)] == [1, 2]  # the same number
    gone = [tracker(both[:1], WIDTH) for _ in range(20)]
    assert [one.track for one in gone[-1]] == [1]
    back = [tracker(both, WIDTH) for _ in range(2)]
    assert [[one.track for one in frame] for frame in back] == [[1], [1, 3]]  # confirmed by two


def test_time_is_that_of_the_frames():
    tracker = LaneTracker(patience=1.0)
    tracker([lane(200)], WIDTH, 0.0)
    assert [one.seen for one in tracker([], WIDTH, 0.9)] == [False]
    assert tracker([], WIDTH, 1.1) == []


def test_numbers_stay_where_frames_are_rare():
    """Two frames of a slow detector are farther apart than the time for which a lane is held."""
    tracker, both = LaneTracker(patience=0.5), [lane(200), lane(700, 1)]
    numbers = [[one.track for one in tracker(both, WIDTH, 0.8 * n)] for n in range(4)]
    assert numbers == [[1, 2]] * 4
    assert [one.track for one in tracker(both[:1], WIDTH, 3.2)] == [1]  # nothing is held so long
    assert [one.track for one in tracker(both, WIDTH, 60.0)] == [3, 4]


def test_a_single_wrong_frame_makes_no_lane():
    tracker = LaneTracker()
    tracker([lane(200)], WIDTH)
    assert [one.track for one in tracker([lane(200), lane(600, 2)], WIDTH)] == [1]
    assert [one.track for one in tracker([lane(200)], WIDTH)] == [1]


def test_rows_that_jump_are_held():
    tracker = LaneTracker()
    for _ in range(10):
        tracker([lane(200)], WIDTH)
    wrong = lane(200).points
    wrong[8:12, 0] += 300
    (found,) = tracker([Lane(0, "slot 0", wrong, 0.9)], WIDTH)
    np.testing.assert_allclose(found.points, lane(200).points, atol=1)


def test_ends_that_are_not_seen_are_held_for_a_while():
    tracker = LaneTracker(patience=0.2)
    for _ in range(5):
        tracker([lane(200)], WIDTH)
    short = [lane(200, rows=ROWS[5:15])]
    lengths = [len(tracker(short, WIDTH)[0].points) for _ in range(10)]
    assert lengths[0] == len(ROWS) and lengths[-1] == 10


def test_the_near_end_is_held_only_as_long_as_it_may_be_in_the_image():
    """An outer line leaves the image in another row when the car pitches."""
    tracker = LaneTracker(confirm=1)
    flat = np.arange(430.0, 330, -20)  # 70 columns per step of 20 rows
    line = Lane(0, "left-left", np.stack([20 + 3.5 * (430 - flat), flat], 1), 0.9)
    for _ in range(20):
        (found,) = tracker([line], WIDTH)
    away = Lane(0, "left-left", line.points[1:] - np.array([45, 0]), 0.9)
    for _ in range(5):  # 45 columns further out: below row 410 it is outside
        (found,) = tracker([away], WIDTH)
    assert found.points[0, 1] == 410 and (np.diff(found.points[:, 0]) > 0).all()
    hidden = replace(line, points=line.points[1:])
    tracker.forget()
    for shown in [line] * 20 + [hidden]:
        (found,) = tracker([shown], WIDTH)
    assert found.points[0, 1] == 430


def test_another_size_or_forgetting_begins_anew():
    tracker = LaneTracker()
    tracker([lane(200)], WIDTH)
    assert tracker([lane(600)], 2 * WIDTH)[0].track == 1
    tracker.forget()
    assert tracker([lane(100)], 2 * WIDTH)[0].track == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": 1.0}, "memory: got 1.0"),
        ({"patience": -1.0}, "patience"),
        ({"confirm": 0}, "confirm"),
        ({"reach": float("nan")}, "reach"),
    ],
)
def test_values_out_of_range(options, message):
    with pytest.raises(ConfigError, match=message):
        LaneTracker(**options)
