import math

import pytest
import torch
import torch.nn.functional as F

from segkd.methods.nst import NST, nst_loss


def channel_maps(features, valid):
    """One image's channels as lists of norm 1 over its valid positions."""
    found = []
    for channel in features:
        values = channel[valid].tolist()
        norm = math.sqrt(sum(value**2 for value in values))
        found.append([value / norm for value in values])
    return found


def mean_kernel(first, second, power):
    values = [sum(x * y for x, y in zip(a, b, strict=True)) ** power for a in first for b in second]
    return sum(values) / len(values)


def reference(student, teacher, mask, power=2):
    """The equation, pair by pair of channels."""
    per_image = []
    for s_maps, t_maps, valid in zip(student, teacher, mask, strict=True):
        if valid.any():
            f_s, f_t = channel_maps(s_maps, valid), channel_maps(t_maps, valid)
            own = mean_kernel(f_s, f_s, power) + mean_kernel(f_t, f_t, power)
            per_image.append(own - 2 * mean_kernel(f_s, f_t, power))
    return sum(per_image) / len(per_image)


def broadcast(student, teacher):
    """How public codes write it: a (B, C, C, N) tensor."""
    f_s, f_t = (F.normalize(a.flatten(2), dim=2) for a in (student, teacher))

    def kernel(a, b):
        return (a[:, :, None] * b[:, None]).sum(-1).pow(2).mean()

    return kernel(f_t, f_t) + kernel(f_s, f_s) - 2 * kernel(f_s, f_t)


def batched_products(student, teacher):
    f_s, f_t = (F.normalize(a.flatten(2), dim=2) for a in (student, teacher))

    def kernel(a, b):
        return torch.einsum("bcn,bdn->bcd", a, b).square().mean()

    return kernel(f_t, f_t) + kernel(f_s, f_s) - 2 * kernel(f_s, f_t)


def spatial_gram(student, teacher):
    """Squared Frobenius distance of the N x N Gram matrices over the channels."""
    f_s, f_t = (F.normalize(a.flatten(2), dim=2) for a in (student, teacher))
    g_s, g_t = (f.transpose(1, 2) @ f / f.shape[1] for f in (f_s, f_t))
    return (g_s - g_t).square().sum((1, 2)).mean()


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(7)
    student = 2 * torch.randn(3, 4, 3, 5, generator=draw, dtype=torch.float64)
    teacher = 2 * torch.randn(3, 6, 3, 5, generator=draw, dtype=torch.float64)
    mask = torch.rand(3, 3, 5, generator=draw) > 0.3
    mask[1] = False
    return student.requires_grad_(), teacher.requires_grad_(), mask


@pytest.mark.parametrize(("kernel", "power"), [("poly", 2), ("linear", 1)])
def test_equals_the_equation(maps, kernel, power):
    student, teacher, mask = maps
    value = nst_loss(student, teacher, mask=mask, kernel=kernel)
    expected = reference(student.detach(), teacher.detach(), mask, power)
    assert value.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("form", [broadcast, batched_products, spatial_gram])
def test_equals_the_other_forms_with_their_gradients(maps, form):
    student, teacher, _ = maps
    value, expected = nst_loss(student, teacher), form(student, teacher)
    torch.testing.assert_close(value, expected)
    found, wanted = (torch.autograd.grad(loss, student)[0] for loss in (value, expected))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("kernel", ["poly", "linear"])
def test_gradient_is_right_and_none_goes_to_the_teacher(maps, kernel):
    student, teacher, mask = maps
    assert torch.autograd.gradcheck(
        lambda a: nst_loss(a, teacher, mask=mask, kernel=kernel), student
    )
    nst_loss(student, teacher, mask=mask).backward()
    assert teacher.grad is None


def test_order_and_sign_of_channels_are_no_matter(maps):
    student, _, mask = maps
    value = nst_loss(student, -student.detach().flip(1), mask=mask)
    assert value.item() == pytest.approx(0, abs=1e-12)


def test_without_a_mask_all_positions_count(maps):
    student, teacher, mask = maps
    assert nst_loss(student, teacher) == nst_loss(student, teacher, mask=torch.ones_like(mask))


@pytest.mark.parametrize("kernel", ["poly", "linear"])
def test_dead_channels_have_no_gradient(maps, kernel):
    """A map of zeros has no direction, and any would be as steep as 1 / eps."""
    student = torch.zeros(2, 4, 3, 5, requires_grad=True)
    value = nst_loss(student, torch.zeros(2, 6, 3, 5), kernel=kernel)
    value.backward()
    assert value == 0 and not student.grad.any()
    student, teacher, mask = maps
    dead = student.detach().clone()
    dead[:, 1] = 0
    dead.requires_grad_()
    nst_loss(dead, teacher, mask=mask, kernel=kernel).backward()
    assert not dead.grad[:, 1].any() and dead.grad[:, 0].any()


def test_no_tensor_grows_with_channels_or_positions_squared():
    """Of every tensor that is kept for backward; C, C' and N are far apart here."""
    student, teacher = torch.randn(1, 8, 16, 16, requires_grad=True), torch.randn(1, 12, 16, 16)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.append(x.numel()) or x, lambda x: x
    ):
        nst_loss(student, teacher)
    assert max(kept) <= 12 * 256


def test_every_conversion_is_checked():
    assert NST.conversions.keys() == {"paper", "RepDistiller, mdistiller"}


@pytest.mark.parametrize("name", NST.conversions)
def test_converted_weight_acts_as_the_peers(maps, name):
    student, teacher, _ = maps
    theirs = NST.conversions[name].weight * broadcast(student, teacher)
    weight = NST.conversions[name].at()
    torch.testing.assert_close(theirs, weight * nst_loss(student, teacher))


def test_an_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match="'poly' or 'linear'"):
        NST.Config(kernel="gauss")
