import pytest
import torch
from torch import nn

from segkd.methods.base import BuildContext, TapInfo
from segkd.methods.mgd import MGD, mgd_loss
from segkd.methods.shared.masked_generation import random_keep


def convolved(maps, layer):
    """A 3x3 convolution of one image (C, h, w), zero beyond the border, by loops."""
    weight, bias = layer.weight.detach(), layer.bias.detach()
    _, h, w = maps.shape
    out = torch.zeros(weight.shape[0], h, w, dtype=maps.dtype)
    for o, y, x in torch.cartesian_prod(*map(torch.arange, out.shape)).tolist():
        total = bias[o].item()
        for dy, dx in torch.cartesian_prod(torch.arange(3), torch.arange(3)).tolist():
            row, column = y + dy - 1, x + dx - 1
            if 0 <= row < h and 0 <= column < w:
                total += (weight[o, :, dy, dx] @ maps[:, row, column]).item()
        out[o, y, x] = total
    return out


def reference(student, teacher, mask, keep, generator):
    """The equation, image by image and element by element."""
    squares = []
    for s_map, t_map, valid, kept in zip(student, teacher, mask, keep, strict=True):
        hidden = torch.zeros_like(s_map)
        for y, x in (valid & kept).nonzero().tolist():
            hidden[:, y, x] = s_map[:, y, x]
        drawn = convolved(convolved(hidden, generator[0]).clamp(min=0), generator[2])
        for y, x in valid.nonzero().tolist():
            squares += [(drawn[c, y, x] - t_map[c, y, x]).item() ** 2 for c in range(len(t_map))]
    return sum(squares) / len(squares)


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(7)
    student, teacher = 2 * torch.randn(2, 3, 4, 3, 5, generator=draw, dtype=torch.float64)
    mask, keep = torch.rand(2, 3, 3, 5, generator=draw) > 0.4
    mask[1] = False
    return student.requires_grad_(), teacher.requires_grad_(), mask, keep


@pytest.fixture
def generator():
    torch.manual_seed(3)
    method = MGD(MGD.Config(width=6))
    method.build(BuildContext({"head": TapInfo(4, 8)}, {"head": TapInfo(4, 8)}, 5))
    return method.generator.double()


def test_equals_the_equation(maps, generator):
    student, teacher, mask, keep = maps
    value = mgd_loss(student, teacher, mask=mask, keep=keep, generate=generator)
    expected = reference(student.detach(), teacher.detach(), mask, keep, generator)
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_gradient_is_right_and_none_goes_to_the_teacher(maps, generator):
    student, teacher, mask, keep = maps
    options = {"mask": mask, "keep": keep, "generate": generator}
    assert torch.autograd.gradcheck(lambda a: mgd_loss(a, teacher, **options), student)
    mgd_loss(student, teacher, **options).backward()
    assert teacher.grad is None


def test_neighbours_do_not_see_invalid_or_hidden_positions(maps, generator):
    student, teacher, mask, keep = maps
    options = {"mask": mask, "keep": keep, "generate": generator}
    before = mgd_loss(student, teacher, **options)
    after = mgd_loss(student + 99 * ~(mask & keep).unsqueeze(1), teacher, **options)
    torch.testing.assert_close(after, before)
    changed = mgd_loss(student, teacher + 99 * ~mask.unsqueeze(1), **options)
    torch.testing.assert_close(changed, before)


def test_hidden_positions_must_be_drawn(maps, generator):
    student, teacher, mask, keep = maps
    options = {"mask": mask, "keep": keep, "generate": generator}
    changed = mgd_loss(student, teacher + (mask & ~keep).unsqueeze(1), **options)
    assert changed != mgd_loss(student, teacher, **options)


def test_without_masks_it_is_the_mean_over_everything(maps):
    student, teacher, _, _ = maps
    torch.testing.assert_close(mgd_loss(student, teacher), nn.functional.mse_loss(student, teacher))


def test_random_mask_hides_the_share_and_depends_on_the_image_alone():
    def draws(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    masks = random_keep(draws(1, 2), (100, 200), 0.75)
    assert masks.shape == (2, 100, 200) and masks.dtype is torch.bool
    assert masks.float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert masks[0].ne(masks[1]).any()
    assert random_keep(draws(2), (100, 200), 0.75)[0].equal(masks[1])
    assert random_keep(draws(1), (3, 5), 0.0).all()


def peer(student, teacher, keep, generator):
    """The sum of squares over the number of images."""
    drawn = generator(student * keep.unsqueeze(1))
    return nn.functional.mse_loss(drawn, teacher, reduction="sum") / len(student)


def test_every_conversion_is_checked():
    assert MGD.conversions.keys() == {"MGD segmentation", "mmrazor"}


@pytest.mark.parametrize("name", MGD.conversions)
def test_converted_weight_acts_as_the_peers(maps, generator, name):
    student, teacher, _, keep = maps
    theirs = MGD.conversions[name].weight * peer(student, teacher, keep, generator)
    weight = MGD.conversions[name].at(C_t=4, h=3, w=5)
    ours = weight * mgd_loss(student, teacher, keep=keep, generate=generator)
    torch.testing.assert_close(theirs, ours)


@pytest.mark.parametrize(("width", "channels", "hidden"), [(0, 64, 64), (0, 2048, 512), (9, 64, 9)])
def test_generator_is_as_wide_as_asked(width, channels, hidden):
    method = MGD(MGD.Config(width=width))
    with torch.device("meta"):
        method.build(BuildContext({"head": TapInfo(8, 4)}, {"head": TapInfo(channels, 4)}, 5))
    assert method.generator[0].weight.shape == (hidden, channels, 3, 3)
    assert method.generator[2].weight.shape == (channels, hidden, 3, 3)
    assert method.adapter.weight.shape == (channels, 8, 1, 1)


def test_hiding_everything_is_refused():
    with pytest.raises(ValueError, match="less than 1"):
        MGD.Config(masked=1.0)
