"""The running root mean square of a teacher's features."""

import pytest
import torch

from segkd.methods.base import Context
from segkd.methods.fitnets import FitNets
from segkd.methods.shared.feature_scale import FeatureScale
from segkd.structures import Batch


def context(inside: torch.Tensor | None = None, **options) -> Context:
    inside = torch.ones(2, 8, 8, dtype=torch.bool) if inside is None else inside
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    return Context(Batch(images, None, inside, torch.arange(2)), **options)


def test_both_sides_are_divided_by_the_mean_over_batches_and_valid_positions():
    inside = torch.ones(2, 8, 8, dtype=torch.bool)
    inside[1, :, 4:] = False
    scale, total, count = FeatureScale(), 0.0, 0
    for number in range(3):
        torch.manual_seed(number)
        student, teacher = torch.randn(2, 3, 4, 4), (2 + number) * torch.randn(2, 5, 8, 8)
        own, other = scale(student, teacher, context(inside))
        squares = [float(v) ** 2 for v in teacher[0].flatten()]
        squares += [float(v) ** 2 for v in teacher[1, :, :, :4].flatten()]
        total, count = total + sum(squares) / len(squares), count + 1
        root = (total / count) ** 0.5
        torch.testing.assert_close(own, student / root)
        torch.testing.assert_close(other, teacher / root)
    assert scale.batches == 3 and "mean_square" in scale.state_dict()


def test_the_mean_is_that_of_the_global_batch():
    halves = [torch.full((2, 1, 8, 8), 1.0), torch.full((2, 1, 8, 8), 3.0)]

    def all_sum(sums):  # the other process has seen threes
        return sums + torch.tensor([9.0, 1.0], dtype=torch.float64) * 128

    _, other = FeatureScale()(halves[0], halves[0], context(all_sum=all_sum))
    torch.testing.assert_close(other, halves[0] / 5**0.5)


def test_a_batch_without_valid_positions_changes_nothing():
    scale, teacher = FeatureScale(), torch.full((2, 1, 8, 8), 4.0)
    nothing = context(torch.zeros(2, 8, 8, dtype=torch.bool))
    assert torch.equal(scale(teacher, teacher, nothing)[0], teacher)
    scale(teacher, teacher, context())
    assert scale(teacher, teacher, nothing)[1].unique().item() == pytest.approx(1.0)


def test_no_value_overflows_and_zero_stays_zero():
    huge = torch.full((2, 1, 8, 8), 1e30)
    assert FeatureScale()(huge, huge, context())[1].unique().item() == pytest.approx(1.0)
    zero, dead = torch.zeros(2, 1, 8, 8), torch.full((2, 1, 8, 8), 1e-9)
    assert not FeatureScale()(zero, zero, context())[1].any()
    assert torch.equal(FeatureScale()(huge, dead, context())[0], huge)


def test_it_can_be_turned_off_and_is_off_with_the_published_weight():
    teacher = torch.full((2, 1, 8, 8), 4.0)
    off = FeatureScale(enabled=False)
    assert off(teacher, teacher, context())[1] is teacher and not off.state_dict()
    assert FitNets.Config().scale == "teacher"
    assert FitNets.Config(weight="paper").scale == "none"
    assert FitNets.Config(weight="paper", scale="teacher").scale == "teacher"
