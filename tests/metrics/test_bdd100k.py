import numpy as np
import pytest

from segkd.errors import DataError
from segkd.metrics.bdd100k import Sums, evaluate_image


def slow_image(predicted, annotated):
    hits = lanes = union = 0
    for p, t in zip(predicted.ravel().tolist(), annotated.ravel().tolist(), strict=True):
        hits += bool(p) and bool(t)
        lanes += bool(t)
        union += bool(p) or bool(t)
    return (hits / lanes, hits / union) if lanes else (0.0, 0.0)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64])
def test_equals_the_slow_reference(dtype):
    rng = np.random.default_rng(0)
    for share in (0.0, 0.1, 0.9):
        predicted, annotated = rng.random((2, 13, 17)) < np.array([0.2, share])[:, None, None]
        scale = 1 if dtype is bool else 255  # annotations are often stored as 0 and 255
        found = evaluate_image(predicted, annotated.astype(dtype) * dtype(scale))
        assert found == pytest.approx(slow_image(predicted, annotated))


def test_by_hand():
    annotated = np.array([[1, 1, 0, 0]])
    assert evaluate_image(np.array([[1, 0, 1, 0]]), annotated) == (0.5, 1 / 3)
    assert evaluate_image(annotated, annotated) == (1.0, 1.0)
    assert evaluate_image(0 * annotated, annotated) == (0.0, 0.0)
    assert evaluate_image(annotated, 0 * annotated) == (0.0, 0.0)


def test_means_are_over_images_and_empty_ones_add_nothing():
    annotated = np.array([[1, 1, 0, 0]])
    parts = [
        Sums().update(annotated, annotated).update(annotated, 0 * annotated),
        Sums().update(np.array([[1, 0, 1, 0]]), annotated),
    ]
    both = parts[0] + parts[1]
    assert both.images == 3
    assert both.accuracy == pytest.approx(1.5 / 3) and both.iou == pytest.approx((4 / 3) / 3)
    assert (Sums().accuracy, Sums().iou) == (0.0, 0.0)


def test_shapes_must_agree():
    with pytest.raises(DataError, match=r"predicted \(2, 3\) and annotated \(3, 2\)"):
        evaluate_image(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(DataError, match="two \\(H, W\\) maps"):
        evaluate_image(np.zeros((1, 2, 3)), np.zeros((1, 2, 3)))
