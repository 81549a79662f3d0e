import math

import pytest
import torch
from torch import nn

from segkd.methods.base import BuildContext, TapInfo
from segkd.methods.pkd import PKD, pkd_loss

EPS = 1e-6


def standardised(values):
    mean = sum(values) / len(values)
    std = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    return [(value - mean) / (std + EPS) for value in values]


def reference(student, teacher, mask):
    """The equation, channel by channel, over the valid positions of all images."""
    per_channel = []
    for channel in range(student.shape[1]):
        x_s, x_t = (standardised(a[:, channel][mask].tolist()) for a in (student, teacher))
        squares = [(s - t) ** 2 for s, t in zip(x_s, x_t, strict=True)]
        per_channel.append(sum(squares) / len(squares) / 2)
    return sum(per_channel) / len(per_channel)


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(7)
    student, teacher = 2 * torch.randn(2, 3, 4, 3, 5, generator=draw, dtype=torch.float64) + 1
    mask = torch.rand(3, 3, 5, generator=draw) > 0.3
    mask[1] = False
    return student.requires_grad_(), teacher.requires_grad_(), mask


def test_equals_the_equation(maps):
    student, teacher, mask = maps
    value = pkd_loss(student, teacher, mask=mask)
    assert value.item() == pytest.approx(reference(*maps), rel=1e-12)


def test_is_one_minus_pearsons_correlation(maps):
    student, teacher, mask = maps
    channels = [a.transpose(0, 1)[:, mask] for a in (student, teacher)]
    r = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(*channels, strict=True)]
    value = pkd_loss(student, teacher, mask=mask, eps=0.0)
    torch.testing.assert_close(value, 1 - torch.stack(r).mean())


def test_gradient_is_right_and_none_goes_to_the_teacher(maps):
    student, teacher, mask = maps
    assert torch.autograd.gradcheck(lambda a: pkd_loss(a, teacher, mask=mask), student)
    pkd_loss(student, teacher, mask=mask).backward()
    assert teacher.grad is None


def test_scale_and_offset_of_channels_are_no_matter(maps):
    student, teacher, mask = maps
    scale, offset = torch.tensor([0.5, 2, 1e3, 1e-2]), torch.tensor([0, -1e3, 7, 1])
    changed = student * scale.view(-1, 1, 1) + offset.view(-1, 1, 1)
    expected = pkd_loss(student, teacher, mask=mask)
    torch.testing.assert_close(pkd_loss(changed, teacher, mask=mask), expected, rtol=1e-3, atol=0)


def test_large_offsets_cost_no_digits_in_single_precision(maps):
    student, teacher, mask = maps
    expected = pkd_loss(student, teacher, mask=mask).float()
    value = pkd_loss(student.float() + 1000, teacher.float() - 1000, mask=mask)
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("level", [0.0, 0.1, 12345.678])
def test_constant_channels_correlate_with_nothing(level):
    """Rounding of a large mean must not look like a deviation."""
    draw = torch.Generator().manual_seed(7)
    student = torch.full((2, 4, 64, 128), level, requires_grad=True)
    value = pkd_loss(student, torch.randn(2, 4, 64, 128, generator=draw))
    value.backward()
    assert value.item() == pytest.approx(0.5, rel=1e-2) and student.grad.isfinite().all()


def test_moments_are_those_of_all_processes(maps):
    """Two processes with the same images find what one finds."""
    student, teacher, mask = maps
    alone = pkd_loss(student, teacher, mask=mask)
    both = pkd_loss(student, teacher, mask=mask, all_sum=lambda x: 2 * x)
    torch.testing.assert_close(both, alone)


def test_without_a_mask_all_positions_count(maps):
    student, teacher, mask = maps
    assert pkd_loss(student, teacher) == pkd_loss(student, teacher, mask=torch.ones_like(mask))


def peer_mmrazor(student, teacher):
    """Standardised by the unbiased deviation of the local batch; half the mean square."""
    x_s, x_t = (
        (a - a.mean((0, 2, 3), keepdim=True)) / (a.std((0, 2, 3), keepdim=True) + EPS)
        for a in (student, teacher)
    )
    return nn.functional.mse_loss(x_s, x_t) / 2


def test_converted_weight_acts_as_the_peers(maps):
    student, teacher, _ = maps
    assert PKD.conversions.keys() == {"mmrazor"}
    theirs = PKD.conversions["mmrazor"].weight * peer_mmrazor(student, teacher)
    ours = PKD.conversions["mmrazor"].at() * pkd_loss(student, teacher)
    positions = student[:, 0].numel()
    torch.testing.assert_close(theirs, ours * (positions - 1) / positions, rtol=1e-5, atol=0)


def test_channels_that_differ_are_refused(maps):
    student, teacher, _ = maps
    with pytest.raises(ValueError, match="channel_adapter"):
        pkd_loss(student[:, :3], teacher)


def test_adapters_only_where_channels_differ():
    method = PKD()
    student = {"stage5": TapInfo(8, 16), "head": TapInfo(4, 4)}
    method.build(BuildContext(student, {"stage5": TapInfo(32, 16), "head": TapInfo(4, 4)}, 5))
    first, second = method.adapters
    assert first.weight.shape == (32, 8, 1, 1) and isinstance(second, nn.Identity)
