import pytest
import torch
from torch import nn

from segkd.methods.base import BuildContext, TapInfo
from segkd.methods.fitnets import FitNets, fitnets_loss


def reference(student, teacher, mask):
    """The equation, element by element."""
    squares = []
    for b, y, x in mask.nonzero().tolist():
        for s, t in zip(student[b, :, y, x].tolist(), teacher[b, :, y, x].tolist(), strict=True):
            squares.append((s - t) ** 2)
    return sum(squares) / len(squares)


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(7)
    student, teacher = 2 * torch.randn(2, 3, 4, 3, 5, generator=draw, dtype=torch.float64)
    mask = torch.rand(3, 3, 5, generator=draw) > 0.3
    mask[1] = False
    return student.requires_grad_(), teacher.requires_grad_(), mask


def test_equals_the_equation(maps):
    student, teacher, mask = maps
    value = fitnets_loss(student, teacher, mask=mask)
    assert value.item() == pytest.approx(reference(*maps), rel=1e-12)


def test_gradient_is_right_and_none_goes_to_the_teacher(maps):
    student, teacher, mask = maps
    assert torch.autograd.gradcheck(lambda a: fitnets_loss(a, teacher, mask=mask), student)
    fitnets_loss(student, teacher, mask=mask).backward()
    assert teacher.grad is None


def test_without_a_mask_all_positions_count(maps):
    student, teacher, mask = maps
    full = fitnets_loss(student, teacher, mask=torch.ones_like(mask))
    assert fitnets_loss(student, teacher) == full


def test_invalid_positions_may_hold_anything(maps):
    student, teacher, mask = maps
    hidden = ~mask.unsqueeze(1)
    broken = student.detach().masked_fill(hidden, float("nan")).requires_grad_()
    value = fitnets_loss(broken, teacher.masked_fill(hidden, float("inf")), mask=mask)
    value.backward()
    torch.testing.assert_close(value, fitnets_loss(student, teacher, mask=mask))
    assert broken.grad.isfinite().all()


def test_larger_maps_are_averaged_to_the_smaller_size(maps):
    student, teacher, mask = maps
    larger = teacher.repeat_interleave(2, -1).repeat_interleave(2, -2)
    expected = fitnets_loss(student, teacher, mask=mask)
    torch.testing.assert_close(fitnets_loss(student, larger, mask=mask), expected)


def test_unequal_channels_and_masks_are_refused(maps):
    student, teacher, mask = maps
    with pytest.raises(ValueError, match="channel_adapter"):
        fitnets_loss(student[:, :2], teacher, mask=mask)
    with pytest.raises(ValueError, match=r"mask has shape \(3, 3, 4\), expected \(3, 3, 5\)"):
        fitnets_loss(student, teacher, mask=mask[..., :4])


def paper(student, teacher):
    """The squared distance, averaged over the images; its half is the weight."""
    return (student - teacher).square().flatten(1).sum(1).mean()


PEERS = {
    "paper": paper,
    "RepDistiller, mdistiller": nn.functional.mse_loss,
    "CIRKD": nn.functional.mse_loss,
    "CIRKD v2": nn.functional.mse_loss,
}


def test_every_conversion_is_checked():
    assert PEERS.keys() == FitNets.conversions.keys()


@pytest.mark.parametrize("peer", PEERS)
def test_converted_weight_acts_as_the_peers(maps, peer):
    student, teacher, _ = maps
    theirs = FitNets.conversions[peer].weight * PEERS[peer](student, teacher)
    weight = FitNets.conversions[peer].at(C_t=4, h=3, w=5)
    torch.testing.assert_close(theirs, weight * fitnets_loss(student, teacher))


def test_regressor_leads_to_the_channels_of_the_hint():
    method = FitNets(FitNets.Config(tap="stage4", teacher_tap="stage5"))
    assert method.needs.student == ("stage4",) and method.needs.teacher == ("stage5",)
    method.build(BuildContext({"stage4": TapInfo(8, 16)}, {"stage5": TapInfo(32, 8)}, 5))
    assert isinstance(method.regressor, nn.Conv2d)
    assert method.regressor.weight.shape == (32, 8, 1, 1)
