import numpy as np
import pytest

from segkd.synthetic.roads.drive import SPEED, Drive
from segkd.synthetic.roads.ground import Ground
from segkd.synthetic.roads.lines import Line
from segkd.synthetic.roads.moving import MovingGround

SIZE = (90, 160)
SECONDS = 24.0


@pytest.fixture(scope="module")
def drive():
    return Drive(0, SECONDS)


def at_rows(lanes):
    """(4, 20) columns of the lanes at common rows, NaN where there is none."""
    rows = np.linspace(0.6, 0.95, 20) * SIZE[0]
    x = np.full((4, 20), np.nan)
    for slot, lane in enumerate(lanes):
        if lane is not None:
            up = lane[::-1]
            x[slot] = np.interp(rows, up[:, 1], up[:, 0], left=np.nan, right=np.nan)
    return x


def test_lanes_move_evenly_except_where_the_slots_change(drive):
    times = np.arange(0, SECONDS, 0.04)
    x = np.array([at_rows(drive.lanes(time, SIZE)) for time in times])
    steps = np.abs(np.diff(x, axis=0)) / SIZE[1]
    jumps = np.unique(np.argwhere(np.nan_to_num(steps) > 0.03)[:, 0])
    assert len(jumps) == 1  # the middle of the change of lanes: each slot gets the next line
    assert abs(times[jumps[0]] - SECONDS / 2) < 1
    # So that even the change of the motion is small
    assert np.nanmedian(np.abs(np.diff(x, n=2, axis=0))) / SIZE[1] < 5e-4


def test_a_frame_is_a_function_of_seed_and_time(drive):
    image = drive.image(3.0, SIZE)
    assert image.shape == (*SIZE, 3) and image.dtype == np.uint8 and image.std() > 10
    np.testing.assert_array_equal(Drive(0, SECONDS).image(3.0, SIZE), image)
    assert np.abs(Drive(1, SECONDS).image(3.0, SIZE).astype(int) - image).mean() > 5


def test_the_pattern_of_the_ground_comes_nearer(drive):
    """What is seen at depth z after d metres was at depth z + d before."""
    camera = drive.camera(0.0)
    line = Line(0.0, 0.2, (255, 255, 255), 1.0, 0.0, dash=3.0, period=12.0, phase=1.0)
    rows = slice(0, None)
    for passed in (0.0, 5.0, 17.0):
        ground = MovingGround.passing(camera, (360, 640), passed)
        rows = slice(0, len(ground.z))
        cover = ground.dashes(line, rows)
        place = (ground.z + passed + 1.0) % 12.0
        inside, outside = (place > 0.5) & (place < 2.5), (place > 3.5) & (place < 11.5)
        near = ground.z < 12  # rows cover less than half a metre
        assert cover[inside & near].min() == 1 and cover[outside & near].max() == 0
        values = np.arange(1500) * 0.1  # the depth itself, repeated after 150 m
        mean, z = ground.along(values), ground.z + passed
        close = near & (ground.far < 150)
        np.testing.assert_allclose(mean[close], z[close] % 150, atol=0.3)
    still, moved = Ground.seen(camera, (360, 640)), MovingGround.passing(camera, (360, 640), 8.0)
    again = MovingGround.passing(camera, (360, 640), 0.0)
    np.testing.assert_allclose(again.noise(8.0, (3, 5)), still.noise(8.0, (3, 5)))
    # The noise repeats after its scale
    np.testing.assert_allclose(moved.noise(8.0, (3, 5)), still.noise(8.0, (3, 5)), atol=1e-3)


def test_things_come_nearer_at_the_speed_of_the_car_and_none_is_driven_through(drive):
    def posts(time):
        near = drive._near(drive.camera(time), time * SPEED)
        return {id(thing.faces): thing.z for thing in near if thing.z > 20}

    before, after = posts(2.0), posts(2.4)
    common = before.keys() & after.keys()
    assert len(common) > 10
    for key in common:
        assert before[key] - after[key] == pytest.approx(0.4 * SPEED)
    for time in np.arange(0, SECONDS, 0.5):
        for car in drive._cars:
            close = abs(car.ahead(time, SPEED)) < 8 and abs(car.side - drive.ego(time)) < 2
            assert not close
