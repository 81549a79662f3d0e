import math

import pytest
import torch
from torch import nn
from toy_run import toy_config

from segkd.engine.run import train_run
from segkd.methods.base import BuildContext, TapInfo
from segkd.methods.ofd import OFD, expected_negative, ofd_loss

TAP = "stage5:pre"


def reference(student, teacher, margin, mask):
    """The equation, element by element."""
    values = []
    for b, y, x in mask.nonzero().tolist():
        for c, floor in enumerate(margin.tolist()):
            s, t = student[b, c, y, x].item(), max(teacher[b, c, y, x].item(), floor)
            values.append((s - t) ** 2 if s > t or t > 0 else 0.0)
    return sum(values) / len(values)


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(7)
    student, teacher = 2 * torch.randn(2, 3, 4, 3, 5, generator=draw, dtype=torch.float64)
    mask = torch.rand(3, 3, 5, generator=draw) > 0.3
    mask[1] = False
    return student.requires_grad_(), teacher.requires_grad_(), mask


@pytest.fixture
def margin():
    return torch.tensor([-0.5, -1.0, -0.1, -2.0], dtype=torch.float64)


def test_equals_the_equation(maps, margin):
    student, teacher, mask = maps
    value = ofd_loss(student, teacher, margin=margin, mask=mask)
    assert value.item() == pytest.approx(reference(student, teacher, margin, mask), rel=1e-12)


def test_without_a_margin_it_is_the_mean_of_negative_values(maps):
    student, teacher, mask = maps
    margin = []
    for channel in teacher.transpose(0, 1):
        negative = [value for value in channel[mask].tolist() if value < 0]
        margin.append(sum(negative) / len(negative))
    expected = reference(student, teacher, torch.tensor(margin, dtype=torch.float64), mask)
    assert ofd_loss(student, teacher, mask=mask).item() == pytest.approx(expected, rel=1e-12)
    both = ofd_loss(student, teacher, mask=mask, all_sum=lambda x: 2 * x)
    assert both.item() == pytest.approx(expected, rel=1e-12)


def test_a_channel_without_negative_values_has_margin_zero(maps):
    student, teacher, mask = maps
    value = ofd_loss(student, teacher.abs(), mask=mask)
    torch.testing.assert_close(
        value, ofd_loss(student, teacher.abs(), margin=torch.zeros(4), mask=mask)
    )


def test_gradient_is_right_and_none_goes_to_the_teacher(maps, margin):
    student, teacher, mask = maps
    options = {"margin": margin, "mask": mask}
    assert torch.autograd.gradcheck(lambda a: ofd_loss(a, teacher, **options), student)
    ofd_loss(student, teacher, **options).backward()
    assert teacher.grad is None


def test_what_no_activation_shows_is_not_asked_for():
    """Student below a negative target: free. Above it, or below a positive one: it pays."""
    teacher, margin = torch.tensor([-3.0, -3.0, 2.0]), torch.tensor([-1.0])
    student = torch.tensor([-5.0, 0.0, 1.0])
    value = ofd_loss(student.view(1, 1, 1, 3), teacher.view(1, 1, 1, 3), margin=margin)
    assert value.item() == pytest.approx((0 + 1 + 1) / 3)


def test_a_target_of_zero_is_passed_from_above_only():
    """[s > t or t > 0] with t = 0."""
    student = torch.tensor([-2.0, 0.0, 3.0]).view(1, 1, 1, 3).requires_grad_()
    value = ofd_loss(student, torch.zeros(1, 1, 1, 3), margin=torch.tensor([-1.0]))
    assert value == 9 / 3
    assert torch.autograd.grad(value, student)[0].flatten().tolist() == [0, 0, 2]


def test_without_a_mask_all_positions_count(maps, margin):
    student, teacher, mask = maps
    full = ofd_loss(student, teacher, margin=margin, mask=torch.ones_like(mask))
    assert ofd_loss(student, teacher, margin=margin) == full


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.7, 0.5), (-2.0, 0.3), (1.0, -2.0)])
def test_margin_is_the_integral_over_the_negative_half(mean, std):
    x = torch.linspace(-30, 0, 1_000_001, dtype=torch.float64)
    density = torch.exp(-0.5 * ((x - mean) / std) ** 2)
    expected = torch.trapezoid(x * density, x) / torch.trapezoid(density, x)
    found = expected_negative(*torch.tensor([mean, std], dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("mean", "std", "margin"), [(9, 1, -3), (1, 0, 0), (-1, 0, -1), (0, 0, 0)])
def test_margin_at_the_extremes(mean, std, margin):
    found = expected_negative(torch.tensor([float(mean)]), torch.tensor([float(std)]))
    assert found.item() == pytest.approx(margin, abs=1e-6)


def spec(norm):
    infos = {TAP: TapInfo(4, 8)}
    return BuildContext(infos, infos, 5, norm_before=lambda tap: norm)


def test_margin_comes_from_the_teachers_batch_norm():
    norm = nn.BatchNorm2d(4)
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    nn.init.uniform_(norm.bias, -1.0, 1.0)
    method = OFD()
    method.build(spec(norm))
    for margin, mean, std in zip(method.margin0, norm.bias, norm.weight, strict=True):
        mean, std = mean.item(), std.item()
        below = 0.5 * math.erfc(mean / std / math.sqrt(2))
        density = math.exp(-0.5 * (mean / std) ** 2) / math.sqrt(2 * math.pi)
        assert margin.item() == pytest.approx(mean - std * density / below, rel=1e-5)
    assert method.notes(10, 4) == [] and "margin0" not in method.state_dict()


@pytest.mark.parametrize("norm", [None, nn.LayerNorm(4), nn.GroupNorm(2, 4)])
def test_without_a_batch_norm_the_log_has_a_warning(norm):
    method = OFD()
    method.build(spec(norm))
    assert method.margin0 is None
    (note,) = method.notes(10, 4)
    assert note.startswith("WARNING: the teacher has no batch norm before 'stage5:pre'; the margin")


def test_a_run_has_the_warning_in_its_log(tmp_path):
    plain = {"arch": "toy", "options": {"norm": False}}
    config = toy_config(tmp_path, steps=1, methods={"ofd": {}}, teachers={"main": plain})
    train_run(config)
    line = "WARNING: methods.ofd: the teacher has no batch norm before 'stage"
    assert (tmp_path / "log.txt").read_text().count(line) == 1


def test_batch_norm_without_parameters_is_standard_normal():
    method = OFD()
    method.build(spec(nn.BatchNorm2d(4, affine=False)))
    torch.testing.assert_close(method.margin0, torch.full((4,), -math.sqrt(2 / math.pi)))


def peer(student, teacher, margin):
    """The public code: the sum over everything by the number of images."""
    target = torch.max(teacher, margin.view(1, -1, 1, 1))
    squares = nn.functional.mse_loss(student, target, reduction="none")
    return (squares * ((student > target) | (target > 0)).float()).sum() / len(student)


OFFICIAL = {"official stage2": 8, "official stage3": 4, "official stage4": 2, "official stage5": 1}


@pytest.mark.parametrize("name", OFD.conversions)
def test_converted_weight_acts_as_the_peers(maps, margin, name):
    student, teacher, _ = maps
    published = 1e-5 / OFFICIAL[name] if name in OFFICIAL else 1 / 1000
    weight = OFD.conversions[name].at(C_t=4, h=3, w=5)
    ours = weight * ofd_loss(student, teacher, margin=margin)
    torch.testing.assert_close(published * peer(student, teacher, margin), ours)


def test_the_connector_is_there_for_equal_channels_too():
    method = OFD()
    method.build(spec(None))
    assert method.connectors[0].weight.shape == (4, 4, 1, 1)


def test_channels_that_differ_are_refused(maps):
    student, teacher, _ = maps
    with pytest.raises(ValueError, match="channel_adapter"):
        ofd_loss(student[:, :3], teacher)
