import math

import numpy as np
import pytest
from slow_culane import (
    SIZE,
    ceiling,
    corner,
    crossing_side,
    level,
    loop,
    odd,
    road,
    side,
    slow_ious,
    slow_mask,
    slow_match,
    sparse,
    straight,
)

from segkd.metrics.culane import count_hits, evaluate_image, evaluate_images, match
from segkd.metrics.culane_spans import draw, overlap
from segkd.metrics.culane_text import batch_of_lanes


def masks(spans, size):
    """The spans painted: (lanes, H, W), counting how often a pixel is covered."""
    painted = np.zeros((len(spans.area), *size), np.uint8)
    columns = np.arange(size[1])
    for lane in range(len(spans.area)):
        for layer in range(spans.first[lane], spans.first[lane + 1]):
            left, right = spans.left[layer, :, None], spans.right[layer, :, None]
            painted[lane, spans.top :] += (columns >= left) & (columns <= right)
    return painted


def assert_paints_like_the_slow_one(lanes, size=SIZE, width=30):
    batch = batch_of_lanes([lanes])
    spans = draw(batch.points, batch.counts, size, width)
    for lane, mask, area in zip(lanes, masks(spans, size), spans.area, strict=True):
        expected = slow_mask(lane, size, width)
        assert np.array_equal(mask, expected), lane.tolist()
        assert area == expected.sum()


@pytest.mark.parametrize(
    "kind", [road, side, crossing_side, ceiling, corner, loop, level, sparse, odd]
)
def test_every_pixel_of_every_kind_of_lane(kind):
    rng = np.random.default_rng(len(kind.__name__))
    lanes = [kind(rng) for _ in range(12)]
    assert_paints_like_the_slow_one([*lanes, *(np.round(lane) for lane in lanes[:4])])


@pytest.mark.parametrize("width", [1, 2, 3, 10, 16, 31, 50])
@pytest.mark.parametrize("size", [(35, 400), (480, 300), (300, 640)])
def test_other_widths_and_sizes(width, size):
    rng = np.random.default_rng(width)
    y = np.linspace(size[0] + 10, 0.3 * size[0], 9)
    lanes = [
        np.stack([rng.uniform(0, size[1]) + np.cumsum(rng.normal(0, 5, 9)), y], 1) for _ in range(4)
    ]
    assert_paints_like_the_slow_one(lanes, size, width)


def test_every_small_move_at_every_edge():
    size = (170, 190)  # just large enough for the tables
    rng = np.random.default_rng(4)
    near = np.arange(-21, 23)
    begins = [(x, 85) for x in near] + [(189 - x, 85) for x in near]
    begins += [(90, y) for y in near] + [(90, 169 - y) for y in near]
    corners = rng.integers(-16, 18, (60, 2))
    begins += [((x, 189 - x)[i % 2], 169 - y) for i, (x, y) in enumerate(corners.tolist())]
    begins += [(x, y) for x, y in corners[:10].tolist()]
    for dy in range(-2, 3):
        for dx in range(-4, 5):
            lanes = [np.array([begin, np.add(begin, (dx, dy))], float) for begin in begins]
            assert_paints_like_the_slow_one(lanes, size)


def test_a_lane_that_turns_within_a_row():
    lanes = [np.array([[100, y], [100 + far, y + 0.2], [100, y + 0.4]]) for y, far in ((300, 9),)]
    lanes += [np.array([[100, 310], [100, 301], [109, 300.2], [102, 300], [102, 280]])]
    assert_paints_like_the_slow_one(lanes)


def test_most_lanes_are_not_painted(monkeypatch):
    painted = []
    monkeypatch.setattr(
        "segkd.metrics.culane_spans._painted", lambda x, *_: painted.append(x) or {}
    )
    lanes = [straight(x, slant) for x in (300, 800, 1300) for slant in (-1.5, -0.4, 0, 0.9, 1.9)]
    evaluate_image(lanes, lanes)
    assert not painted


def test_overlaps_are_those_of_the_masks():
    rng = np.random.default_rng(3)
    lanes = [[kind(rng) for kind in (road, loop, level, side, corner)] for _ in range(2)]
    first, second = (
        draw(b.points, b.counts, SIZE, 30) for b in (batch_of_lanes([side]) for side in lanes)
    )
    i, j = np.divmod(np.arange(25), 5)
    slow = [[slow_mask(lane) for lane in side] for side in lanes]
    expected = [int((slow[0][a] & slow[1][b]).sum()) for a, b in zip(i, j, strict=True)]
    assert overlap(first, second, i, j).tolist() == expected and sum(expected) > 0


def test_counts_are_those_of_the_slow_program():
    rng = np.random.default_rng(5)
    for _ in range(6):
        annotation = [road(rng) for _ in range(rng.integers(1, 5))]
        prediction = [lane + rng.normal(0, 9, (1, 2)) for lane in annotation[rng.integers(2) :]]
        prediction.insert(0, road(rng))
        ious = slow_ious(annotation, prediction)
        rows = ious if len(ious) <= len(ious[0]) else [list(c) for c in zip(*ious, strict=True)]
        tp = sum(v >= 0 and rows[u][v] > 0.5 for u, v in enumerate(slow_match(rows)))
        expected = tp, len(prediction) - tp, len(annotation) - tp
        assert evaluate_image(annotation, prediction) == expected


def test_matching_equals_the_official_search():
    rng = np.random.default_rng(0)
    for _ in range(3000):
        rows = rng.integers(1, 5)
        ious = rng.uniform(0, 1, (rows, rng.integers(rows, 6)))
        ious[rng.random(ious.shape) < 0.4] = 0
        near = rng.random(ious.shape) < 0.3
        ious[near] = 0.5 + rng.uniform(-0.02, 0.02, near.sum())
        ious[rng.random(ious.shape) < 0.05] = math.nan
        ious = ious.tolist()
        expected = slow_match(ious)
        assert match(ious) == expected
        tp = sum(v >= 0 and ious[u][v] > 0.5 for u, v in enumerate(expected))
        assert count_hits(ious, 0.5) == tp
        assert count_hits([list(column) for column in zip(*ious, strict=True)], 0.5) == tp or (
            len(ious) == len(ious[0])
        )


def test_many_images_at_once_are_the_same():
    rng = np.random.default_rng(8)
    annotations = [[road(rng) for _ in range(rng.integers(0, 5))] for _ in range(9)]
    predictions = [[lane + 6.0 for lane in lanes[1:]] for lanes in annotations]
    expected = [evaluate_image(a, p) for a, p in zip(annotations, predictions, strict=True)]
    assert [tuple(row) for row in evaluate_images(annotations, predictions).tolist()] == expected
