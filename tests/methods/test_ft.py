import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segkd.methods.base import BuildContext, Context, TapInfo
from segkd.methods.ft import FT, Layers, ft_loss
from segkd.structures import Batch, Outputs


def reference(student, teacher, mask):
    """The equation, element by element: Σ |q_s − q_t| / √n of each image."""
    found = []
    for image in range(len(student)):
        places = mask[image].nonzero().tolist()
        if not places:
            continue
        own, target = (
            [maps[image, c, y, x].item() for c in range(maps.shape[1]) for y, x in places]
            for maps in (student, teacher)
        )
        norms = [math.sqrt(sum(v * v for v in values)) for values in (own, target)]
        pairs = zip(own, target, strict=True)
        distance = sum(abs(s / norms[0] - t / norms[1]) for s, t in pairs)
        found.append(distance / math.sqrt(len(own)))
    return sum(found) / len(found)


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(4)
    student, teacher = 2 * torch.randn(2, 3, 4, 3, 5, generator=draw, dtype=torch.float64)
    mask = torch.rand(3, 3, 5, generator=draw) > 0.3
    mask[1] = False
    return student.requires_grad_(), teacher.requires_grad_(), mask


def test_equals_the_equation(maps):
    student, teacher, mask = maps
    found = ft_loss(student, teacher, mask=mask).item()
    assert found == pytest.approx(reference(student, teacher, mask), rel=1e-6)
    full = torch.ones_like(mask)
    assert ft_loss(student, teacher).item() == pytest.approx(
        reference(student, teacher, full), rel=1e-6
    )


def test_gradient_is_right_and_none_goes_to_the_teacher(maps):
    student, teacher, mask = maps
    assert torch.autograd.gradcheck(lambda a: ft_loss(a, teacher, mask=mask), student)
    ft_loss(student, teacher, mask=mask).backward()
    assert teacher.grad is None


def test_only_directions_are_compared(maps):
    student, teacher, mask = maps
    value = ft_loss(student, teacher, mask=mask)
    torch.testing.assert_close(
        ft_loss(7 * student, 50 * teacher, mask=mask), value, rtol=1e-5, atol=0
    )
    assert ft_loss(3 * teacher, teacher, mask=mask).item() == pytest.approx(0, abs=1e-6)


def test_the_value_does_not_fall_with_the_number_of_elements():
    """Unit vectors of n elements differ by n^-½ in each: the mean of public code falls."""
    draw = torch.Generator().manual_seed(0)
    for shape in ((2, 32, 8, 8), (2, 64, 32, 64)):
        student, teacher = torch.randn(2, *shape, generator=draw)
        # E|a − b| of two standard normals is 2/√π.
        assert ft_loss(student, teacher).item() == pytest.approx(2 / math.sqrt(math.pi), rel=0.02)


def test_zero_factors_have_a_bounded_gradient():
    student = torch.zeros(1, 2, 2, 2, requires_grad=True)
    ft_loss(student, torch.ones(1, 2, 2, 2)).backward()
    assert student.grad.isfinite().all() and student.grad.abs().max() < 1e3


@pytest.mark.parametrize(("name", "published"), [("FT", 500), ("RepDistiller", 200)])
def test_converted_weight_acts_as_the_peers(maps, name, published):
    """Of a teacher of 8 channels, at rate 0.5."""
    student, teacher, _ = maps
    units = [F.normalize(factors.flatten(1)) for factors in (student, teacher)]
    ours = FT.conversions[name].at(C_t=8, h=3, w=5) * ft_loss(student, teacher)
    torch.testing.assert_close(
        ours, published * (units[0] - units[1]).abs().mean(), rtol=1e-6, atol=0
    )


def test_the_weight_of_the_paper_is_that_at_its_size():
    assert FT.conversions["FT"].at(C_t=64, h=8, w=8) == pytest.approx(FT.paper_weight, rel=1e-3)
    assert "707.107/(√C_t·√h·√w)" in str(FT.conversions["FT"])


def test_channels_that_differ_are_refused(maps):
    student, teacher, _ = maps
    with pytest.raises(ValueError, match="channel_adapter"):
        ft_loss(student[:, :3], teacher)


# -- paraphraser and translator --------------------------------------------------------------------


def test_layers_are_convolutions_with_leaky_relu_after_each():
    torch.manual_seed(0)
    layers, maps = Layers(3, 4, 2), torch.randn(2, 3, 5, 6)
    expected = maps
    for convolution in layers.convolutions:
        expected = F.conv2d(expected, convolution.weight, convolution.bias, padding=1)
        expected = torch.where(expected > 0, expected, 0.1 * expected)
    torch.testing.assert_close(layers(maps, torch.ones(2, 5, 6) > 0), expected)
    turned = layers.convolutions[0].weight.transpose(0, 1).flip(2, 3)
    first = F.conv2d(maps, layers.convolutions[0].weight, padding=1)
    torch.testing.assert_close(F.conv_transpose2d(maps, turned, padding=1), first)


def test_padding_has_no_part_in_any_layer():
    """A padded map gives what the map without its padding gives, also behind biases."""
    torch.manual_seed(0)
    layers, maps = Layers(3, 4, 4, 2), torch.randn(1, 3, 5, 8)
    for convolution in layers.convolutions:
        nn.init.normal_(convolution.bias)
    mask = torch.ones(1, 5, 8) > 0
    mask[:, :, 5:] = False
    found = layers(maps.masked_fill(~mask.unsqueeze(1), float("nan")), mask)
    torch.testing.assert_close(found[..., :5], layers(maps[..., :5], mask[..., :5]))
    assert not found[..., 5:].any()


def make(**options):
    torch.manual_seed(0)
    method = FT(FT.Config(**options))
    method.build(BuildContext({"head": TapInfo(3, 4)}, {"head": TapInfo(6, 4)}, 5))
    batch = Batch(torch.zeros(2, 3, 32, 32), None, torch.ones(2, 32, 32) > 0, torch.arange(2))
    draw = torch.Generator().manual_seed(1)
    sides = [
        Outputs(torch.zeros(2, 5, 8, 8), {"head": torch.randn(2, c, 8, 8, generator=draw)})
        for c in (3, 6)
    ]
    return method, (*sides, batch, Context(batch))


@pytest.mark.parametrize(("rate", "channels"), [(0.5, 3), (1.0, 6), (0.01, 1), (4.0, 24)])
def test_factors_have_a_rate_of_the_teachers_channels(rate, channels):
    method, step = make(rate=rate)
    shapes = {
        name: [c.weight.shape[:2] for c in getattr(method, name).convolutions]
        for name in ("translator", "encoder", "decoder")
    }
    assert shapes == {
        "translator": [(3, 3), (channels, 3), (channels, channels)],
        "encoder": [(6, 6), (channels, 6), (channels, channels)],
        "decoder": [(channels, channels), (6, channels), (6, 6)],
    }
    assert method.loss(*step)["ft"].value > 0


def test_the_student_matches_the_paraphrase_and_trains_the_translator_alone():
    method, (student, teacher, batch, context) = make()
    value = method.loss(student, teacher, batch, context)["ft"].value
    mask = torch.ones(2, 8, 8) > 0
    root = teacher.tap("head").square().mean().sqrt()
    own = method.translator(student.tap("head") / root, mask)
    target = method.encoder(teacher.tap("head") / root, mask)
    torch.testing.assert_close(value, ft_loss(own, target))
    value.backward()
    inner = {id(parameter) for parameter in method.inner_parameters()}
    for parameter in method.parameters():
        assert (parameter.grad is None) == (id(parameter) in inner)
    assert {id(p) for p in method.trained_parameters()} == {
        id(p) for p in method.translator.parameters()
    }


def test_reconstruction_is_the_mean_square_and_falls():
    method, step = make(rate=1.0, paraphraser_lr=0.01)
    teacher, mask = step[1].tap("head"), torch.ones(2, 8, 8) > 0
    target = teacher / teacher.square().mean().sqrt()
    found = method.decoder(method.encoder(target, mask), mask)
    first = method.inner_loss(*step)["reconstruction"]
    torch.testing.assert_close(first.value, (found - target).square().mean())
    assert first.count == 2 * 8 * 8
    optimizer = method.inner_optimizer(method.inner_parameters())
    for _ in range(60):
        optimizer.zero_grad()
        value = method.inner_loss(*step)["reconstruction"].value
        value.backward()
        optimizer.step()
    assert value < 0.5 < first.value, "a mean of 0 has a distance of 1"


def test_the_paraphraser_learns_for_a_tenth_of_the_run_by_default():
    assert [FT().preparation_steps(total) for total in (600, 44, 3)] == [60, 4, 0]
    assert FT(FT.Config(paraphraser_steps=7)).preparation_steps(600) == 7
    assert FT(FT.Config(paraphraser_steps=0)).preparation_steps(600) == 0
