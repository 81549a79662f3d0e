import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from segkd.errors import DataError
from segkd.metrics.boundary import (
    BoundaryCounts,
    boundary,
    boundary_counts,
    boundary_iou,
    boundary_width,
    mean_boundary_iou,
)

K, VOID = 5, 255
SIZE = (61, 83)  # a diagonal of 103: d = 2


def maps(seed=0, size=SIZE):
    """Blocks of classes 0 to 3, shifted and speckled in the prediction; some of it void."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 4, (size[0] // 9 + 1, size[1] // 13 + 1))
    label = np.kron(coarse, np.ones((9, 13), np.int64))[: size[0], : size[1]]
    prediction = np.roll(label, (1, 2), (0, 1))
    speckles = draw.random(size) < 0.01
    prediction[speckles] = 4
    label[20:30, 40:60] = VOID
    return torch.from_numpy(prediction), torch.from_numpy(label)


def slow_boundary(mask, width):
    """The pixels of a mask with anything else, or the end of the image, within ``width``."""
    height, columns = mask.shape
    found = np.zeros_like(mask)
    for y in range(height):
        for x in range(columns):
            window = mask[max(0, y - width) : y + width + 1, max(0, x - width) : x + width + 1]
            whole = window.size == (2 * width + 1) ** 2
            found[y, x] = mask[y, x] and not (whole and window.all())
    return found


def slow_counts(prediction, label):
    """The definition, class by class; void is of no class in both maps."""
    width = max(1, round(0.02 * math.sqrt(label.shape[0] ** 2 + label.shape[1] ** 2)))
    prediction, label = prediction.numpy(), label.numpy()
    counts = []
    for k in range(K):
        truth = slow_boundary((label == k), width)
        guess = slow_boundary((prediction == k) & (label != VOID), width)
        counts.append([(truth & guess).sum(), (truth | guess).sum()])
    return torch.tensor(counts).T


@pytest.mark.parametrize("size", [SIZE, (20, 31), (3, 5), (1, 1), (120, 40)])
def test_equals_the_slow_reference(size):
    for seed in range(2):
        prediction, label = maps(seed, size)
        found = boundary_counts(prediction, label, K, VOID)
        assert found.dtype is torch.int64
        assert torch.equal(found, slow_counts(prediction, label))
    assert size != SIZE or (0 < found[0, 0] < found[1, 0])


@pytest.mark.parametrize("width", [1, 2, 5, 40])
def test_boundary_of_all_regions_at_once(width):
    label = maps(3)[1]
    expected = np.zeros(label.shape, bool)
    for k in label.unique().tolist():
        expected |= slow_boundary(label.numpy() == k, width)
    assert torch.equal(boundary(label, width), torch.from_numpy(expected))
    assert torch.equal(boundary(label.to(torch.uint8), width), torch.from_numpy(expected))


def test_equals_the_morphology_of_the_authors():
    """Erosion of the mask framed by zeros, d times by 3x3, as their code does it."""
    cv2 = pytest.importorskip("cv2")
    label = maps(1, (200, 301))[1]
    width = boundary_width((200, 301))
    assert width == 7
    for k in range(4):
        mask = (label == k).numpy().astype(np.uint8)
        framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        eroded = cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
        ours = boundary(label, width) & (label == k)
        assert np.array_equal(ours.numpy(), (mask - eroded).astype(bool))


def test_the_width_is_two_percent_of_the_diagonal():
    assert boundary_width((1024, 2048)) == 46
    assert boundary_width((1024, 2048), 0.005) == 11
    assert boundary_width((4, 4)) == 1


def test_predictions_at_void_pixels_do_not_matter():
    prediction, label = maps()
    for other in (0, VOID):
        changed = prediction.where(label != VOID, other)
        found = boundary_counts(changed, label, K, VOID)
        assert torch.equal(found, boundary_counts(prediction, label, K, VOID))


def test_a_perfect_prediction_has_one_and_an_absent_class_none():
    label = maps()[1]
    perfect = boundary_counts(label, label, K, VOID)
    scores = boundary_iou(perfect)
    assert scores[:4].tolist() == [1, 1, 1, 1] and scores[4].isnan()
    assert mean_boundary_iou(perfect) == 1
    wrong = boundary_counts((label + 1).clamp(max=4), label, K, VOID)
    assert boundary_iou(wrong).tolist() == [0] * 5


def test_edges_count_more_than_in_iou():
    label = torch.zeros(100, 100, dtype=torch.long)
    label[20:80, 20:80] = 1
    prediction = torch.roll(label, 2, 1)
    score = boundary_iou(boundary_counts(prediction, label, 2, VOID))[1]
    plain = ((prediction & label) == 1).sum() / ((prediction | label) == 1).sum()
    assert score < 0.6 < 0.9 < plain


@pytest.mark.parametrize("wrong", [5, 254, -2])
def test_unknown_ids_are_refused(wrong):
    for what in (0, 1):
        pair = maps()
        pair[what][0, 0] = wrong
        with pytest.raises(
            DataError, match=rf"{('prediction', 'label')[what]} has the ids {wrong}"
        ):
            boundary_counts(*pair, K, VOID)


def test_sizes_must_agree():
    with pytest.raises(DataError, match="differ in size"):
        boundary_counts(torch.zeros(4, 5).long(), torch.zeros(4, 6).long(), K, VOID)


def test_counts_are_summed_over_images_and_processes():
    total = BoundaryCounts(K, VOID)
    expected = torch.zeros(2, K, dtype=torch.int64)
    for seed in range(3):
        total.update(*maps(seed))
        expected += slow_counts(*maps(seed))
    assert torch.equal(total.counts, expected)
    total.reduce(SimpleNamespace(all_reduce=lambda tensor: tensor * 2))
    assert torch.equal(total.counts, 2 * expected)


@pytest.mark.parametrize("void", [256, -100])
def test_no_byte_is_taken_for_a_void_beyond_bytes(void):
    label = torch.arange(200, dtype=torch.uint8)[None]
    assert boundary_counts(label, label, 200, void)[0].tolist() == [1] * 200
