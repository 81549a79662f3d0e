import re
from pathlib import Path

import numpy as np
import pytest

from segkd.errors import ConfigError
from segkd.inference.bird import EXAMPLE, BirdView
from segkd.inference.lane_types import Lane
from segkd.viz.bird_panel import bird_panel

SHAPE = (540, 960)
FOCAL, HEIGHT, HORIZON = 800.0, 1.3, 250.0  # pixels, metres, row: a camera over a flat road


def seen(x, z):
    """Pixels of places on the road."""
    x, z = np.asarray(x, float), np.asarray(z, float)
    return np.stack([480 + FOCAL * x / z, HORIZON + FOCAL * HEIGHT / z], -1)


ROAD = np.array([[-1.8, 5], [-1.8, 25], [1.8, 25], [1.8, 5]])
IMAGE = seen(*ROAD.T)


def lane(foot, curvature=0.0, lean=0.0, far=45):
    z = 1 / np.linspace(1 / 4.0, 1 / far, 20)
    x = foot + lean * z + curvature / 2 * z**2
    return Lane(0, "", seen(x, z), 0.9)


def test_the_map_is_that_of_the_camera():
    view = BirdView(IMAGE, ROAD)
    places = np.array([[0.3, 6], [-5, 40], [2, 49.0]])
    np.testing.assert_allclose(view.to_road(seen(*places.T), SHAPE), places, rtol=1e-6)
    above = np.array([[480.0, 200.0], [480.0, HORIZON], [480, 251.0]])
    assert not len(view.to_road(above, SHAPE))  # sky, horizon, and beyond the reach of 50 m


def test_offset_width_and_curvature():
    view = BirdView(IMAGE, ROAD)
    for radius in (300.0, -800.0):
        lanes = [lane(foot, 1 / radius) for foot in (-5.6, -2.1, 1.4, 4.9)]
        facts = view.measure(lanes, SHAPE)
        bend = 25 / 2 / radius  # of the lanes at 5 m, where the view begins
        assert facts.width == pytest.approx(3.5)
        assert facts.offset == pytest.approx(0.35 - bend)  # right of the middle: -(-2.1 + 1.4) / 2
        assert facts.curvature == pytest.approx(1 / radius, rel=1e-3)
        assert facts.radius == pytest.approx(radius, rel=1e-3)
        assert facts.sides == pytest.approx([foot + bend for foot in (-5.6, -2.1, 1.4, 4.9)])
        assert facts.curvatures == pytest.approx([1 / radius] * 4, rel=1e-3)


def test_curvature_is_that_of_the_curve_where_the_road_leans():
    (facts,) = [BirdView(IMAGE, ROAD).measure([lane(1.0, 0.004, lean=0.3)], SHAPE)]
    assert facts.curvature == pytest.approx(0.004 / (1 + 0.3**2) ** 1.5, rel=1e-3)


def test_what_is_not_seen_is_not_told():
    view = BirdView(IMAGE, ROAD)
    nothing = view.measure([], SHAPE)
    assert (nothing.offset, nothing.width, nothing.curvature, nothing.radius) == (None,) * 4
    one = view.measure([lane(-1.8)], SHAPE)
    assert one.offset is None and one.curvature == pytest.approx(0, abs=1e-9)
    short = view.measure([lane(-1.8, far=9)], SHAPE)
    assert short.curvature is None and short.sides == pytest.approx([-1.8])


def test_images_of_another_size():
    view = BirdView(IMAGE, ROAD, size=SHAPE)
    # Pixel 0 of the small image covers 0 and 1 of the large one, so its centre is at 0.5 there
    half = view.to_road((seen([1.0], [10.0]) - 0.5) / 2, (270, 480))
    np.testing.assert_allclose(half, [[1.0, 10.0]], rtol=1e-6)


def write(path, text):
    path.write_text(text)
    return path


GOOD = f"image: {IMAGE.tolist()}\nroad: {ROAD.tolist()}\n"


def test_a_file(tmp_path):
    view = BirdView.read(write(tmp_path / "road.yaml", GOOD + "size: [540, 960]\nreach: 40\n"))
    assert (view.near, view.reach, view.size) == (5, 40, (540, 960))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image: [[1, 2]]\nroad: [[1, 2]]", r"road.yaml:1: image: .*4 items(.|\n)*For example"),
        (GOOD.replace("road:", "roads:"), "road"),
        (GOOD + "size: [960, 540]\n", r"size: the point .* did you mean size: \[540, 960\]"),
        (GOOD + "size: [270, 480]\n", "outside of images of height 270 and width 480. Give the"),
        (GOOD + "reach: 4000\n", "reach: got 4000 m, expected up to 1000"),
        (f"image: {IMAGE.tolist()}\nroad: {(100 * ROAD).tolist()}", "180 m to the side.*centim"),
        (f"image: {IMAGE.tolist()}\nroad: {(ROAD * [1, 100]).tolist()}", "2500 m ahead.*Give met"),
        (GOOD + "reach: 3\n", "more than the nearest point, 5 m"),
        (GOOD.replace("25.0", ".nan"), "got '.nan', expected a number"),
        (f"image: {IMAGE[::-1].tolist()}\nroad: {ROAD.tolist()}", "the same order"),
        (f"image: {IMAGE[[0, 1, 1, 3]].tolist()}\nroad: {ROAD.tolist()}", "on one line"),
        (f"image: {IMAGE.tolist()}\nroad: {(ROAD - [0, 9]).tolist()}", "0 or more"),
        (f"image: {IMAGE[[0, 2, 1, 3]].tolist()}\nroad: {ROAD.tolist()}", "the same order"),
    ],
)
def test_files_that_describe_no_road(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        BirdView.read(write(tmp_path / "road.yaml", text))


def test_the_examples_are_valid(tmp_path):
    page = (Path(__file__).parents[2] / "docs/lanes.md").read_text()
    (shown,) = [text for text in re.findall(r"```yaml\n(.*?)```", page, re.S) if "road:" in text]
    for text in (shown, EXAMPLE):
        assert BirdView.read(write(tmp_path / "road.yaml", text)).near == 4


@pytest.mark.parametrize("reach", [45, 90, 225, 400, 1000, 9000])
def test_texts_of_the_panel_do_not_touch(reach):
    """Between the rows of two texts there is one without any."""
    view, image = BirdView(IMAGE, ROAD), np.zeros((*SHAPE, 3), np.uint8)
    panel = bird_panel(image, view.matrix(SHAPE), [], [], reach=reach)
    written = (panel[:, -62:] > 130).all(2).any(1)
    begins = np.flatnonzero(written[1:] & ~written[:-1])
    wanted = sum((panel[:, 20] == 120).all(1))
    # the text of a line at the very top is above the panel
    assert 0 < wanted <= 22 and wanted - len(begins) in (0, 1)


def test_the_panel_shows_a_straight_lane_upright():
    view, image = BirdView(IMAGE, ROAD), np.zeros((*SHAPE, 3), np.uint8)
    place = view.to_road(lane(3.0).points, SHAPE)
    panel = bird_panel(image, view.matrix(SHAPE), [place], [(250, 10, 10)], reach=50.0)
    red = (panel[..., 0] > 200) & (panel[..., 1] < 60)
    columns = np.nonzero(red)[1]
    assert panel.shape == (540, 297, 3)
    assert abs(columns.mean() - (297 / 2 + 3.0 * 297 / 18)) < 2 and np.ptp(columns) < 10
