import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from slow_culane import painted

from segkd.metrics.culane import Rules, draw_lanes, evaluate_image
from segkd.metrics.culane_paint import thick_lines, union
from segkd.metrics.culane_spans import draw, overlap
from segkd.metrics.culane_text import batch_of_lanes

STORED = Path(__file__).parents[1] / "files/opencv4_lines.npz"  # see tests/make_opencv4_lines.py


@pytest.fixture(scope="module")
def stored():
    """4320 segments, long and short, in and out of the image, painted by OpenCV 4.11."""
    return dict(np.load(STORED))


def test_every_pixel_of_opencv_4(stored):
    """Widths 1 to 60 and six sizes."""
    wrong = []
    for pair, size, width in zip(stored["ends"], stored["size"], stored["width"], strict=True):
        for ends in pair.astype(np.int64):
            mask = painted(ends[:1], ends[1:], tuple(size.tolist()), int(width))
            wrong.append(zlib.crc32(np.packbits(mask.astype(bool)).tobytes()))
    found = np.array(wrong, np.uint32).reshape(stored["checksums"].shape)
    assert np.array_equal(found, stored["checksums"])
    assert len(np.unique(stored["checksums"])) > 2500  # they are not all empty


def test_common_pixels_of_two_point_lanes_are_those_of_opencv_4(stored):
    sizes, kind = np.unique(stored["size"], axis=0, return_inverse=True)
    for number, size in enumerate(sizes.tolist()):
        for width in (1, 2, 7, 16, 30, 45, 60):
            own = (kind.ravel() == number) & (stored["width"] == width)
            sides = [batch_of_lanes([list(stored["ends"][own, i])]) for i in (0, 1)]
            spans = [draw(side.points, side.counts, tuple(size), width) for side in sides]
            pairs = np.arange(own.sum())
            assert overlap(*spans, pairs, pairs).tolist() == stored["shared"][own].tolist()


@pytest.mark.skipif(not cv2.__version__.startswith("4."), reason="with an OpenCV 4 only")
def test_every_pixel_of_the_installed_opencv_4():
    rng = np.random.default_rng(7)
    for width in (1, 2, 7, 30, 45):
        for size in ((590, 1640), (60, 90)):
            for begin, end in rng.integers(-2000, 2000, (60, 2, 2)):
                expected = cv2.line(np.zeros(size, np.uint8), begin, end, 1, width)
                assert np.array_equal(painted(begin[None], end[None], size, width), expected)


def test_the_shortest_lanes_on_which_opencv_5_disagrees():
    """The official program's IoU is 0.5087; with lines of OpenCV 5 it would be 0.4904."""
    annotation = np.array([[95.3773, 167.777], [226.805, 325.325]])
    prediction = np.array([[103.309, 182.886], [218.215, 313.961]])
    rules = Rules((256, 256), 7)
    a, b = (draw_lanes(batch_of_lanes([[lane]]), rules).spans for lane in (annotation, prediction))
    shared = int(overlap(a, b, np.array([0]), np.array([0]))[0])
    assert shared / (a.area[0] + b.area[0] - shared) == pytest.approx(0.5087, abs=5e-5)
    counts = evaluate_image([annotation], [prediction], image_size=(256, 256), lane_width=7)
    assert counts == (1, 0, 0)


def test_coordinates_at_the_limits_of_integers():
    """Beyond 32 bits a quadrilateral is not filled, but its sides are drawn."""
    lowest, far = -(2**31), 2**31 - 1
    one = thick_lines(np.array([[lowest, lowest]]), np.array([[100, 100]]), np.array([300, 400]), 5)
    assert one.left.max() - one.right.min() < 400
    disc = painted(np.array([[100, 100]]), np.array([[100, 100]]), (300, 400), 5).sum()
    sides = painted(np.array([[lowest, lowest]]), np.array([[100, 100]]), (300, 400), 5).sum()
    assert 150 < sides - disc < 210  # two lines of about 100 pixels
    level = painted(np.array([[lowest, 50]]), np.array([[far, 50]]), (300, 400), 5)
    assert level.sum() == 7 * 400


def test_union_joins_runs_that_overlap_or_touch():
    runs = [(0, 3, 5, 9), (0, 3, 10, 12), (0, 3, 14, 15), (0, 4, 16, 20), (2, 4, 0, 8191)]
    runs += [(2, 4, 6, 7), (0, 3, 6, 7)]
    found = union(*np.array(runs[::-1], np.int64).T)
    expected = [(0, 3, 5, 12), (0, 3, 14, 15), (0, 4, 16, 20), (2, 4, 0, 8191)]
    assert np.stack(found, 1).tolist() == [list(run) for run in expected]
    assert [len(part) for part in union(*np.zeros((4, 0), np.int64))] == [0] * 4
