import pytest
import torch
from torch import nn

from segkd.modules.adapter import START, channel_adapter


def test_equal_channels_need_no_parameters():
    assert isinstance(channel_adapter(8, 8), nn.Identity)
    assert channel_adapter(8, 8, always=True).weight.shape == (8, 8, 1, 1)


@pytest.mark.parametrize(("gain", "expected"), [(None, START), (1.0, 1.0)])
def test_it_starts_with_the_given_gain_near_zero_by_default(gain, expected):
    torch.manual_seed(0)
    features = 3 * torch.randn(2, 64, 32, 32)
    ratio = channel_adapter(64, 512, gain=gain)(features).std() / features.std()
    assert ratio.item() == pytest.approx(expected, rel=0.05)


def test_a_fresh_one_is_no_further_from_the_teacher_than_nothing():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 16, 8, 8, requires_grad=True), torch.randn(2, 32, 8, 8)
    distance = (channel_adapter(16, 32)(student) - teacher).square().mean()
    distance.backward()
    assert distance.item() == pytest.approx(teacher.square().mean().item(), rel=0.01)
    random = (channel_adapter(16, 32, gain=1.0)(student) - teacher).square().mean()
    (pull,) = torch.autograd.grad(random, student)
    assert student.grad.norm() < 0.02 * pull.norm()
