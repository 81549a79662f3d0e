import numpy as np
import pytest

from segkd.inference.lane_fit import fit_points, fit_rows

WIDTH = 1640
Y = 589.0 - 20 * np.arange(18)  # as CULane's rows, from bottom to top
KINDS = pytest.mark.parametrize("kind", ["poly", "spline"])


def lane(foot, y=Y):
    """A lane that bends a little."""
    return foot + (820 - foot) * (589 - y) / 380 + 4e-4 * (589 - y) ** 2


def off(found, true):
    return np.nanmax(np.abs(found - true))


@KINDS
def test_a_zigzag_between_two_lanes_stays_on_one(kind):
    draw, missed = np.random.default_rng(0), 0
    for _ in range(20):
        x = lane(600) + draw.normal(0, 2, 18)
        jumps = draw.choice(18, 7, replace=False)
        x[jumps] = lane(1100)[jumps]
        found = fit_rows(x, Y, WIDTH, kind)
        missed += off(found, lane(600)) > 0.015 * WIDTH
        assert off(found, lane(600)) < 0.05 * WIDTH  # the lanes are 0.3 apart
        inner = slice(*np.flatnonzero(~np.isnan(found))[[0, -1]])
        assert not np.isnan(found[inner]).any()  # no holes
    assert missed <= 1  # an end that goes on to a point of the other lane


@KINDS
def test_clean_lanes_stay_what_they_are(kind):
    cubic = 700 + 0.3 * (589 - Y) - 5e-4 * (589 - Y) ** 2 + 1e-6 * (589 - Y) ** 3
    assert off(fit_rows(cubic, Y, WIDTH, kind), cubic) < (1e-6 if kind == "poly" else 3)
    order = np.random.default_rng(1).permutation(18)
    np.testing.assert_allclose(
        fit_rows(cubic[order], Y[order], WIDTH, kind), fit_rows(cubic, Y, WIDTH, kind)[order]
    )


@KINDS
def test_gaps_are_filled_and_ends_are_not_moved(kind):
    x = lane(500)
    x[[0, 1, 7, 8, 16, 17]] = np.nan
    found = fit_rows(x, Y, WIDTH, kind)
    assert np.isnan(found).tolist() == [*2 * [True], *14 * [False], *2 * [True]]
    assert off(found, lane(500)) < 5


def test_a_spline_follows_an_s_bend_that_a_cubic_does_not():
    y = np.arange(160.0, 720, 10)
    bends = 640 + 60 * np.sin((y - 160) / 560 * 3 * np.pi)
    found = {kind: fit_rows(bends, y, 1280, kind, tolerance=0.06) for kind in ("poly", "spline")}
    print({kind: off(one, bends) for kind, one in found.items()})
    assert 2 * off(found["spline"], bends) < off(found["poly"], bends)


@KINDS
def test_stray_points_alone_are_no_lane(kind):
    draw = np.random.default_rng(2)
    kept = [
        np.isfinite(fit_rows(draw.uniform(0, WIDTH, 18), Y, WIDTH, kind)).any() for _ in range(40)
    ]
    assert sum(kept) <= 2


@KINDS
def test_a_flat_lane_keeps_points_that_are_a_few_rows_off(kind):
    """Across the lane they are near; along a row they are farther off than the tolerance."""
    draw = np.random.default_rng(5)
    for _ in range(10):
        x = 1540 - 3.0 * (Y - 249) + 3.0 * draw.normal(0, 7, 18)
        found = fit_rows(x, Y, WIDTH, kind)
        assert np.isfinite(found).sum() >= 17
        assert off(found, 1540 - 3.0 * (Y - 249)) < 3.0 * 20


@KINDS
@pytest.mark.parametrize("side", [1, -1])
def test_points_that_stick_to_the_border_do_not_bend_a_lane(kind, side):
    """An outer lane leaves the image; in the rows below the map is largest at its border."""
    true = 820 - side * 2.6 * (Y - 249)
    x = np.clip(true, 0, WIDTH - 1)
    assert ((x == 0) | (x == WIDTH - 1)).sum() >= 1
    found = fit_rows(x, Y, WIDTH, kind)
    assert off(found, true) < 2
    assert np.isnan(found[(x == 0) | (x == WIDTH - 1)]).all()


def test_a_step_cuts_a_lane():
    """Of two pieces that a steep part joins, the longer one is left."""
    joined = 800 + 300 * np.tanh((Y - 380) / 20)
    found = fit_rows(joined, Y, WIDTH, "spline", tolerance=0.5, largest_step=3.0)
    whole = fit_rows(joined, Y, WIDTH, "spline", tolerance=0.5, largest_step=30.0)
    kept = ~np.isnan(found)
    assert np.abs(np.diff(whole)).max() > 60 and not np.isnan(whole).any()
    assert np.nanmax(np.abs(np.diff(found))) <= 60 and 4 <= kept.sum() < 16
    assert np.ptp(np.flatnonzero(kept)) == kept.sum() - 1
    np.testing.assert_allclose(found[kept], whole[kept])


def test_few_points():
    assert fit_points(np.array([[10.0, 5.0]]), 100) is None
    pair = np.array([[10.0, 5.0], [20.0, 3.0]])
    np.testing.assert_allclose(fit_points(pair, 100), pair)
    assert fit_points(np.array([[10.0, 5.0], [20.0, 5.0]]), 100) is None
    three = np.array([[10.0, 5.0], [12.0, 4.0], [14.0, 3.0]])
    np.testing.assert_allclose(fit_points(three, 100, "spline"), three, atol=1e-4)


def test_a_larger_image_has_larger_lanes():
    x = lane(600) + np.random.default_rng(3).normal(0, 3, 18)
    for kind in ("poly", "spline"):
        small, large = fit_rows(x, Y, WIDTH, kind), fit_rows(2 * x, 2 * Y, 2 * WIDTH, kind)
        np.testing.assert_allclose(large, 2 * small, rtol=1e-6)
