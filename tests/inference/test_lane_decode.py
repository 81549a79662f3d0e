"""Decoding against loops written from the description of the recipe, one number at a time."""

import math

import numpy as np
import pytest
import torch

from segkd.config.schema import LaneRules
from segkd.inference.lane_decode import decode

H, W = 590, 1640


def maps(h=58, w=160, lanes=4, images=2, seed=0):
    """Smooth random maps whose peaks are above and below the threshold."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, lanes + 1, h, w, generator=draw, dtype=torch.float64)
    logits = torch.nn.functional.avg_pool2d(logits, 5, 1, 2) * 12
    return logits.softmax(1)


def python_lane(prob, size, cut_top, threshold=0.3, side=9):
    """cv2.blur with repeated borders, int(), and x = 0 as no point."""
    h, w = prob.shape
    full, wide = size
    shown, half, points = full - cut_top, side // 2, []
    for i in range(18):
        step = 20 * full / 590
        row = int(h - i * step / shown * h - 1)
        if row < 0:
            continue
        best, at = -1.0, None
        for column in range(w):
            total = 0.0
            for dy in range(-half, half + 1):
                for dx in range(-half, half + 1):
                    y, x = min(max(row + dy, 0), h - 1), min(max(column + dx, 0), w - 1)
                    total += prob[y, x]
            if total / side**2 > best + 1e-15:
                best, at = total / side**2, column
        x = int(at / w * wide)
        if best > threshold and x > 0:
            points.append((x, int(full - i * step - 1)))
    return points if len(points) >= 2 else None


def uint16(value):
    """Matlab's: half away from zero."""
    return math.floor(value + 0.5)


def matlab_lane(prob, size, cut_top, threshold=0.3):
    """Convolution over zeros, 8 bits, everything counted from 1."""
    h, w = prob.shape
    full, wide = size
    image = np.zeros((h, w), int)
    padded = np.pad(prob, 4)
    for y in range(h):
        for x in range(w):
            image[y, x] = int(255 * (padded[y : y + 9, x : x + 9].sum() / 81))
    points = []
    for i in range(1, 19):
        step = 20 * full / 590
        row = uint16(h - (i - 1) * step / (full - cut_top) * h)
        if row < 1:
            continue
        line = image[row - 1]
        value = line.max()
        column = int(np.flatnonzero(line == value)[0]) + 1
        if value / 255 > threshold:
            points.append((uint16(column * wide / w) - 1, uint16(full - (i - 1) * step) - 1))
    return points if len(points) >= 2 else None


@pytest.mark.parametrize(
    ("size", "cut_top"), [((H, W), 0), ((H, W), 240), ((295, 640), 0), ((720, 1280), 100)]
)
@pytest.mark.parametrize(
    ("variant", "reference"), [("python", python_lane), ("matlab", matlab_lane)]
)
def test_equals_the_slow_reference(variant, reference, size, cut_top):
    probabilities = maps(29, 64)
    found = decode(probabilities, None, [size] * 2, LaneRules(variant=variant), cut_top=cut_top)
    kinds = set()
    for image, lanes in zip(probabilities, found, strict=True):
        for slot, lane in enumerate(lanes.points):
            expected = reference(image[slot + 1].numpy(), size, cut_top)
            kinds.add(expected is None)
            assert (lane is None) == (expected is None)
            if expected:
                assert lane.tolist() == [list(point) for point in expected]
    assert False in kinds


def test_the_rows_of_culane():
    found = decode(torch.full((1, 2, 288, 800), 0.5), None, [(H, W)])[0]
    assert found.y.tolist() == list(range(589, 248, -20))
    cut = decode(torch.full((1, 2, 208, 976), 0.5), None, [(H, W)], cut_top=240)[0]
    assert cut.y.tolist() == found.y.tolist()
    matlab = decode(torch.full((1, 2, 288, 800), 0.5), None, [(H, W)], LaneRules(variant="matlab"))
    assert matlab[0].y.tolist() == found.y.tolist()


def stripe(columns, h=60, w=100, value=0.9, lanes=1, slot=0):
    """A map with a vertical stripe that is 9 columns wide."""
    found = torch.zeros(1, lanes + 1, h, w)
    for column in columns:
        found[0, slot + 1, :, max(0, column - 4) : column + 5] = value
    found[:, 0] = 1 - found[:, 1:].sum(1)
    return found


def test_the_leftmost_column_is_a_point_in_matlab_only():
    edge = torch.zeros(1, 2, 60, 100)
    edge[0, 1, :, 0] = 1.0  # repeated beyond the border: 5 of 9 columns
    rules = LaneRules(threshold=0.1)
    assert decode(edge, None, [(590, 1640)], rules)[0].found == []
    lane = decode(edge, None, [(590, 1640)], LaneRules(variant="matlab", threshold=0.1))[0].found[0]
    assert set(lane[:, 0]) == {uint16(1640 / 100) - 1}


def test_the_threshold_is_strict():
    flat = torch.full((1, 2, 60, 100), 0.25)
    flat[..., 50] = 0.5
    for threshold, number in ((0.499, 1), (0.5, 0)):
        rules = LaneRules(threshold=threshold, smoothing=1)
        assert len(decode(flat, None, [(H, W)], rules)[0].found) == number


def test_existence_drops_lanes_and_is_the_score():
    maps = stripe([30], lanes=2, slot=0) + stripe([70], lanes=2, slot=1)
    exist = torch.tensor([[2.0, -2.0]])
    found = decode(maps, exist, [(H, W)])[0]
    assert found.points[0] is not None and found.points[1] is None
    assert found.scores == pytest.approx(exist.sigmoid()[0].numpy())
    both = decode(maps, exist, [(H, W)], LaneRules(existence=0.1))[0]
    assert len(both.found) == 2
    at_half = decode(maps, torch.zeros(1, 2), [(H, W)])[0]
    assert at_half.found == []  # more than 0.5 is asked for


def test_without_existence_the_score_is_the_mean_of_the_map():
    found = decode(stripe([50], value=0.8), None, [(H, W)], LaneRules(smoothing=1))[0]
    assert found.scores[0] == pytest.approx(0.8)


def test_a_single_point_is_no_lane():
    maps = torch.zeros(1, 2, 59, 100)
    maps[0, 1, 38] = torch.eye(100)[50] * 0.9  # y = 389 alone
    rules = LaneRules(smoothing=1)
    assert decode(maps, None, [(H, W)], rules)[0].found == []
    maps[0, 1, 36] = maps[0, 1, 38]
    assert [len(lane) for lane in decode(maps, None, [(H, W)], rules)[0].found] == [2]


def test_given_rows_differ_between_images_and_leave_absent_points_out():
    maps = torch.cat([stripe([30], h=72, w=128), stripe([60], h=72, w=128)])
    maps[:, 1, :36] = 0  # the upper half has no lane
    rows = [np.arange(160, 720, 10), np.arange(240, 720, 10)]
    first, second = decode(maps, None, [(720, 1280)] * 2, rows=rows)
    assert first.x.shape == (1, 56) and second.x.shape == (1, 48)
    assert second.y.tolist() == rows[1].tolist()
    above = rows[0] < 300
    assert np.isnan(first.x[0, above]).all()
    # The middle of column 30 of 128, in pixels of 1280.
    assert first.x[0, rows[0] > 420].tolist() == [304.5] * int((rows[0] > 420).sum())
    assert second.x[0, rows[1] > 420].tolist() == [604.5] * int((rows[1] > 420).sum())
    lane = first.points[0]
    assert lane[0, 1] == 710 and (np.diff(lane[:, 1]) < 0).all()  # from bottom to top


def test_rows_above_the_cut_have_no_point():
    found = decode(stripe([50]), None, [(720, 1280)], cut_top=300, rows=[np.arange(160, 720, 10)])
    assert np.isnan(found[0].x[0, :14]).all() and not np.isnan(found[0].x[0, 14:]).any()


@pytest.mark.parametrize("variant", ["python", "matlab"])
def test_sub_pixel_finds_a_slanted_line_between_the_pixels(variant):
    """A Gaussian ridge along a line: rounding is off by a pixel of the map, the mean is not."""
    h, w = 96, 160
    y, x = np.mgrid[:h, :w]
    line = 40.3 + 0.6 * y
    ridge = 0.95 * np.exp(-((x - line) ** 2) / 18)
    maps = torch.from_numpy(np.stack([1 - ridge, ridge]))[None]
    errors = {}
    for sub_pixel in (False, True):
        rules = LaneRules(sub_pixel=sub_pixel, variant=variant, smoothing=5)
        (lane,) = decode(maps, None, [(H, W)], rules)[0].found
        row = (lane[:, 1] + 0.5) * h / H - 0.5
        inside = row < h - 4  # at the border the filter sees repeated rows
        expected = (40.3 + 0.6 * row + 0.5) * W / w - 0.5
        errors[sub_pixel] = np.abs(lane[:, 0] - expected)[inside].max()
    assert errors[True] < 0.6 < 4 < errors[False]  # pixels of 1640; one of the map is 10


def test_a_batch_is_its_images():
    probabilities = maps(images=3)
    exist = torch.tensor([[1.0, -1, 2, 3], [4, 4, 4, 4], [-1, 2, -3, 4]])
    sizes = [(590, 1640), (720, 1280), (300, 400)]
    for rules in (LaneRules(), LaneRules(variant="matlab"), LaneRules(sub_pixel=True)):
        together = decode(probabilities, exist, sizes, rules, cut_top=30)
        for number in range(3):
            one = slice(number, number + 1)
            (alone,) = decode(probabilities[one], exist[one], sizes[one], rules, cut_top=30)
            np.testing.assert_array_equal(alone.x, together[number].x)
            np.testing.assert_array_equal(alone.scores, together[number].scores)


def test_bfloat16_maps_are_raised():
    found = decode(stripe([50]).bfloat16(), None, [(H, W)])[0]
    assert len(found.found) == 1 and found.x.dtype == np.float64


def test_an_even_box_is_refused():
    with pytest.raises(ValueError, match="has no centre: use an odd number"):
        LaneRules(smoothing=8)


def test_columns_are_scaled_in_double_precision():
    """0.525 · 1640 is 861; in single precision it was 860.99998, and so 860."""
    peaks = torch.zeros(1, 801, 4, 800)
    peaks[0, 1:] = torch.eye(800)[:, None]
    found = decode(peaks, None, [(H, W)], LaneRules(smoothing=1))[0]
    expected = [int(column / 800 * W) for column in range(1, 800)]
    assert found.x[1:, 0].tolist() == expected and expected[419] == 861
