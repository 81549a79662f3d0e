"""The scores of CurveLanes and LLAMAS against plain programs written from their definitions."""

import itertools
import math

import cv2
import numpy as np
import pytest

from segkd.metrics import curvelanes, llamas
from segkd.metrics.drawn_lanes import hits, ious, masks, matched
from segkd.metrics.parametric_splines import distinct

DRAW = np.random.default_rng(8)


def roads(count, size, points=6):
    """Lanes that converge, and lanes near them."""
    height, width = size
    lanes = []
    for foot in np.linspace(0.1, 0.9, count) * width:
        y = np.linspace(height - 1, 0.4 * height, points)
        x = (
            foot
            + (width / 2 - foot) * (height - 1 - y) / height
            + DRAW.normal(0, width / 200, points)
        )
        lanes.append(np.stack([x, y], 1))
    shifted = [lane + DRAW.normal(0, width / 90, (1, 2)) for lane in lanes[1:]]
    return lanes, [*shifted, lanes[0] * 0.9]


def best_by_trying(values):
    """The largest sum over all assignments."""
    rows = values if len(values) <= len(values[0]) else values.T
    n, m = rows.shape
    return max(sum(rows[i, p[i]] for i in range(n)) for p in itertools.permutations(range(m), n))


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (4, 4), (5, 3)])
def test_the_assignment_has_the_largest_sum(shape):
    for seed in range(20):
        values = np.random.default_rng(seed).uniform(0, 1, shape).round(1)  # with ties
        found = matched(values)
        assert len(found) == min(shape)
        assert sum(found) == pytest.approx(best_by_trying(values))
    assert matched(np.empty((0, 3))) == []


@pytest.mark.skipif(cv2.__version__[0] != "4", reason="OpenCV 5 draws thick lines differently")
def test_masks_are_those_of_cv2_line():
    lanes = [DRAW.uniform(-30, 130, (5, 2)) for _ in range(20)]
    found = masks(lanes, (90, 110), 5)
    for lane, mask in zip(lanes, found, strict=True):
        image = np.zeros((90, 110), np.uint8)
        for p, q in itertools.pairwise(lane.astype(int).tolist()):
            cv2.line(image, p, q, 1, 5)
        np.testing.assert_array_equal(mask, image > 0)


def natural_spline(lane):
    """Points a pixel apart, by the tridiagonal algorithm for one axis after the other."""
    h = [math.dist(a, b) for a, b in itertools.pairwise(lane)]
    n, axes = len(lane), []
    for axis in range(2):
        v = [point[axis] for point in lane]
        upper, right = [], []
        for i in range(n - 2):
            bend = 6 * ((v[i + 2] - v[i + 1]) / h[i + 1] - (v[i + 1] - v[i]) / h[i])
            pivot = 2 * (h[i] + h[i + 1]) - (h[i] * upper[-1] if i else 0)
            right.append((bend - (h[i] * right[-1] if i else 0)) / pivot)
            upper.append(h[i + 1] / pivot)
        m = [0.0] * n
        for i in range(n - 3, -1, -1):
            m[i + 1] = right[i] - upper[i] * m[i + 2]
        axes.append((v, m))
    found = []
    for i in range(n - 1):
        t = 0
        while t < h[i]:
            point = []
            for v, m in axes:
                slope = (v[i + 1] - v[i]) / h[i] - (2 * h[i] * m[i] + h[i] * m[i + 1]) / 6
                point.append(
                    v[i] + slope * t + m[i] / 2 * t**2 + (m[i + 1] - m[i]) / (6 * h[i]) * t**3
                )
            found.append(point)
            t += 1
    return np.array([*found, lane[-1]])


@pytest.mark.parametrize("points", [2, 3, 4, 9])
def test_curvelanes_paths_are_natural_splines(points):
    lane = np.stack([DRAW.uniform(0, 2560, points), np.linspace(1439, 500, points)], 1)
    scaled = lane * [224 / 2560, 224 / 1440]
    np.testing.assert_allclose(curvelanes.path(lane, (1440, 2560)), natural_spline(scaled.tolist()))


@pytest.mark.parametrize("points", [2, 3, 4, 5, 12])
def test_llamas_paths_are_those_of_splprep(points):
    interpolate = pytest.importorskip("scipy.interpolate")
    lane = np.stack([DRAW.uniform(0, 1276, points), np.linspace(716, 300, points)], 1)
    knots, _ = interpolate.splprep(lane.T, s=0, k=min(3, points - 1))
    expected = np.array(interpolate.splev(np.linspace(0, 1, 50), knots)).T
    np.testing.assert_allclose(llamas.path(lane), expected, atol=1e-6)


def plain_counts(first, second, size, width, threshold):
    """TP, FP, FN of paths with images and sums of pixels."""
    painted = masks([*first, *second], size, width)
    table = np.zeros((len(first), len(second)))
    for i, j in itertools.product(range(len(first)), range(len(second))):
        a, b = painted[i], painted[len(first) + j]
        table[i, j] = (a & b).sum() / max((a | b).sum(), 1)
    np.testing.assert_allclose(ious(first, second, size, width), table)
    tp = sum(value > threshold for value in matched(table))
    return [tp, len(second) - tp, len(first) - tp]


def test_scores_of_images():
    size = (1440, 2560)
    annotated, predicted = roads(5, size)
    paths = [[curvelanes.path(lane, size) for lane in own] for own in (annotated, predicted)]
    expected = [plain_counts(*paths, (224, 224), 5, t) for t in (0.05, 0.8)]
    found = curvelanes.evaluate_image(annotated, predicted, size, (0.05, 0.8))
    assert found.tolist() == expected and found[0, 0] > 0 and found[0].tolist() != found[1].tolist()
    annotated, predicted = roads(4, llamas.SIZE, points=30)
    expected = [
        plain_counts(annotated, [llamas.path(one) for one in predicted], llamas.SIZE, 30, 0.5)
    ]
    assert llamas.evaluate_image(annotated, predicted).tolist() == expected


def test_nothing_is_no_hit_and_copies_are():
    lanes, _ = roads(3, (720, 1280))
    for evaluate in (
        lambda a, b: curvelanes.evaluate_image(a, b, (720, 1280)),
        llamas.evaluate_image,
    ):
        assert evaluate([], lanes).tolist() == [[0, 3, 0]]
        assert evaluate(lanes, []).tolist() == [[0, 0, 3]]
        assert evaluate([], []).tolist() == [[0, 0, 0]]
    assert curvelanes.evaluate_image(lanes, lanes[::-1], (720, 1280)).tolist() == [[3, 0, 0]]
    # one point has no pixel: of CurveLanes it counts as a lane, of LLAMAS not
    point = [np.array([[3.0, 4.0]])]
    assert curvelanes.evaluate_image(lanes, point, (720, 1280)).tolist() == [[0, 1, 3]]
    assert llamas.evaluate_image(lanes, point).tolist() == [[0, 0, 3]]


def test_points_twice_and_far_away_are_finite():
    lane = np.array([[10.0, 200], [10, 200], [50, 100], [math.inf, 3], [1e9, 2]])
    assert len(distinct(lane)) == 3
    assert curvelanes.evaluate_image([lane], [lane], (300, 400)).sum() <= 2
    assert hits([lane[:2]], [lane[2:3]], (50, 50), 3, [0.5]).tolist() == [[0, 1, 1]]
