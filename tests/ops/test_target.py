import math

import pytest
import torch

from segkd.ops.target import has_class, target_and_rest, target_map

LABELS = torch.tensor([[[0, 1], [2, 255]], [[-100, 3], [-1, 1]]])


def test_labels_outside_of_the_classes_are_void():
    found = has_class(LABELS, torch.zeros(2, 3, 2, 2))
    assert found.tolist() == [[[True, True], [True, False]], [[False, False], [False, True]]]


def test_labels_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 2, 2\), expected \(2, 4, 4\).*nearest"):
        has_class(LABELS, torch.zeros(2, 3, 4, 4))


def test_map_is_a_one_hot_without_void():
    found = target_map(LABELS, 3)
    for b, y, x in torch.cartesian_prod(*map(torch.arange, LABELS.shape)).tolist():
        expected = [k == LABELS[b, y, x] for k in range(3)]
        assert found[b, :, y, x].tolist() == expected


def test_softmax_of_both_answers_is_the_targets_probability():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 2, 2, generator=draw, dtype=torch.float64)
    found = target_and_rest(logits, target_map(LABELS, 3)).softmax(1)
    for b, y, x in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 1, 1)):
        powers = [math.exp(z) for z in logits[b, :, y, x].tolist()]
        p = powers[LABELS[b, y, x]] / sum(powers)
        torch.testing.assert_close(found[b, :, y, x], torch.tensor([p, 1 - p]).double())


@pytest.mark.parametrize("label", range(4))
@pytest.mark.parametrize("excluded", range(4))
@pytest.mark.parametrize("low", [-20.0, -1e9, -float("inf")])
def test_the_rest_is_right_whichever_class_is_excluded(label, excluded, low):
    logits = torch.tensor([0.3, -0.7, 1.1, 0.2], dtype=torch.float64)
    logits[excluded] = low
    target = target_map(torch.full((1, 1, 1), label), 4)
    _, rest = target_and_rest(logits.view(1, 4, 1, 1), target)[0, :, 0, 0]
    expected = math.log(sum(math.exp(z) for k, z in enumerate(logits.tolist()) if k != label))
    assert rest.item() == pytest.approx(expected, rel=1e-12)


def test_saturated_logits_keep_their_gap_and_a_finite_gradient():
    logits = torch.tensor([1e4, -1e4, -1e4]).view(1, 3, 1, 1).requires_grad_()
    own, rest = target_and_rest(logits, target_map(torch.zeros(1, 1, 1), 3))[0, :, 0, 0]
    assert own == 1e4 and rest.item() == pytest.approx(-1e4 + math.log(2))
    rest.backward()
    assert logits.grad.flatten().tolist() == [0.0, 0.5, 0.5]
