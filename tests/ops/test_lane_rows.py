import math

import pytest
import torch

from segkd.ops.lane_rows import anchored_rows, lane_rows, log_odds


def make_logits(classes=4, scale=2.0):
    draw = torch.Generator().manual_seed(0)
    return scale * torch.randn(2, classes, 2, 3, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize("classes", [2, 5])
def test_equals_the_definition(classes):
    logits = make_logits(classes)
    found, probability = log_odds(logits), logits.softmax(1)
    assert found.shape == (2, classes - 1, 2, 3)
    for b, k, y, x in torch.ones_like(found).nonzero().tolist():
        p = float(probability[b, k + 1, y, x])
        assert float(found[b, k, y, x]) == pytest.approx(math.log(p / (1 - p)), rel=1e-9)


@pytest.mark.parametrize("classes", [2, 5])
def test_gradient_is_right(classes):
    assert torch.autograd.gradcheck(log_odds, make_logits(classes).requires_grad_())


def test_log_probabilities_have_the_same_odds():
    logits = make_logits()
    torch.testing.assert_close(log_odds(logits.log_softmax(1)), log_odds(logits))


def test_saturated_logits_are_exact_and_finite():
    logits = torch.tensor([0.0, 1e4, -1e4]).view(1, 3, 1, 1).requires_grad_()
    found = log_odds(logits)
    found.sum().backward()
    assert found.flatten().tolist() == [1e4, -2e4] and logits.grad.isfinite().all()


@pytest.mark.parametrize("gap", [0.0, 20.0, 60.0, 200.0])
def test_one_large_class_among_equals_is_exact_in_single_precision(gap):
    """Its odds are gap - log 2: 1 - p would be rounded to 0, and total minus largest as well."""
    logits = torch.tensor([0.0, gap, 0.0]).view(1, 3, 1, 1).requires_grad_()
    found = log_odds(logits)
    assert found[0, 0].item() == pytest.approx(gap - math.log(2), rel=1e-6, abs=1e-6)
    (gradient,) = torch.autograd.grad(found[0, 0].sum(), logits)
    assert gradient.flatten().tolist() == pytest.approx([-0.5, 1.0, -0.5])


def test_input_is_left_alone_and_one_class_is_refused():
    logits = make_logits()
    before = logits.clone()
    log_odds(logits)
    assert torch.equal(logits, before)
    with pytest.raises(ValueError, match="1 class"):
        log_odds(logits[:, :1])


@pytest.mark.parametrize("threshold", [-1.0, 0.0])
def test_rows_of_padding_alone_do_not_count(threshold):
    mask = torch.ones(2, 2, 3, dtype=torch.bool)
    mask[:, 1] = False
    rows = lane_rows(make_logits(), make_logits(), mask=mask, threshold=threshold)
    assert rows.gate.flatten().tolist() == [1.0, 0.0] * 6  # of two images with three lanes
    heights = (0.3, 0.8)
    rows = anchored_rows(make_logits(), make_logits(), heights, mask=mask, threshold=threshold)
    assert rows.gate.flatten().tolist() == [1.0, 0.0] * 6
