import pytest
import torch
from torch import nn

from segkd.errors import ConfigError
from segkd.methods.base import BuildContext, Context, TapInfo
from segkd.methods.defeat import DeFeat, defeat_loss
from segkd.structures import Batch, Outputs
from segkd.testing import check_method

VOID = 255


def side(student, teacher, chosen, regions=None):
    """The equation on one side, element by element; with regions, the mean of their means."""
    found = {}
    for b, y, x in chosen.nonzero().tolist():
        pairs = zip(student[b, :, y, x].tolist(), teacher[b, :, y, x].tolist(), strict=True)
        squares = [(s - t) ** 2 for s, t in pairs]
        key = (b, y, x) if regions is None else (b, int(regions[b, y, x]))
        found.setdefault(key, []).append(sum(squares) / len(squares))
    means = [sum(values) / len(values) for values in found.values()]
    return sum(means) / max(1, len(means))


def reference(student, teacher, foreground, mask, regions=None):
    front = side(student, teacher, mask & foreground, regions)
    return 1.5 * front + 6 * side(student, teacher, mask & ~foreground, regions)


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(7)
    student, teacher = 2 * torch.randn(2, 3, 4, 3, 5, generator=draw, dtype=torch.float64)
    foreground, mask = torch.rand(2, 3, 3, 5, generator=draw) > torch.tensor(0.3)
    mask[1] = False
    return student.requires_grad_(), teacher.requires_grad_(), foreground, mask


@pytest.fixture
def regions():
    labels = torch.randint(4, (3, 3, 5), generator=torch.Generator().manual_seed(8))
    labels[1] = VOID
    return labels


@pytest.mark.parametrize("by_region", [False, True])
def test_equals_the_equation(maps, regions, by_region):
    student, teacher, foreground, mask = maps
    options = {"regions": regions} if by_region else {}
    value = defeat_loss(student, teacher, foreground=foreground, mask=mask, **options)
    expected = reference(student, teacher, foreground, mask, **options)
    assert value.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("by_region", [False, True])
def test_gradient_is_right_and_none_goes_to_the_teacher(maps, regions, by_region):
    student, teacher, foreground, mask = maps
    options = {"foreground": foreground, "mask": mask}
    options |= {"regions": regions} if by_region else {}
    assert torch.autograd.gradcheck(lambda a: defeat_loss(a, teacher, **options), student)
    defeat_loss(student, teacher, **options).backward()
    assert teacher.grad is None


def test_regions_do_not_depend_on_the_resolution(maps, regions):
    student, teacher, foreground, mask = maps

    def larger(x):
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    options = {"foreground": foreground, "mask": mask, "regions": regions}
    enlarged = {name: larger(value) for name, value in options.items()}
    found = defeat_loss(larger(student), larger(teacher), **enlarged)
    torch.testing.assert_close(found, defeat_loss(student, teacher, **options))


@pytest.mark.parametrize("empty", ["foreground", "background", "both"])
def test_an_empty_side_adds_nothing(maps, regions, empty):
    student, teacher, foreground, mask = maps
    foreground = torch.full_like(foreground, empty == "background")
    mask = mask & torch.tensor(empty != "both")
    for options in ({}, {"regions": regions}):
        student.grad = None
        value = defeat_loss(student, teacher, foreground=foreground, mask=mask, **options)
        value.backward()
        expected = reference(student, teacher, foreground, mask, **options)
        assert value.item() == pytest.approx(expected, rel=1e-12)
        assert student.grad.isfinite().all() and bool(student.grad.any()) == (empty != "both")


def test_invalid_positions_may_hold_anything(maps, regions):
    student, teacher, foreground, mask = maps
    hidden = ~mask.unsqueeze(1)
    broken = student.detach().masked_fill(hidden, float("nan")).requires_grad_()
    options = {"foreground": foreground, "mask": mask, "regions": regions}
    value = defeat_loss(broken, teacher.masked_fill(hidden, float("inf")), **options)
    value.backward()
    torch.testing.assert_close(value, defeat_loss(student, teacher, **options))
    assert broken.grad.isfinite().all()


def test_shapes_that_do_not_fit_are_refused(maps):
    student, teacher, foreground, mask = maps
    with pytest.raises(ValueError, match="channel_adapter"):
        defeat_loss(student[:, :2], teacher, foreground=foreground)
    for wrong in ({"mask": mask[..., :4]}, {"regions": foreground.long()[:, :2]}):
        with pytest.raises(ValueError, match="shape"):
            defeat_loss(student, teacher, foreground=foreground, **wrong)
    with pytest.raises(ValueError, match=r"expected \(3, 3, 5\)"):
        defeat_loss(student, teacher, foreground=foreground[..., :4])


def peer(student, teacher, chosen, weight):
    """The sum over channels too, divided by twice the mask's sum over channels, at least 1."""
    chosen = chosen.unsqueeze(1).expand_as(student).to(student.dtype)
    total = (chosen * (student - teacher).square()).sum()
    return weight * total / (2 * chosen.sum().clamp(min=1))


def test_converted_weights_act_as_the_peers(maps):
    student, teacher, foreground, _ = maps
    front, back = DeFeat.conversions.values()
    assert DeFeat.default_weights == {"foreground": front.at(), "background": back.at()}
    theirs = peer(student, teacher, foreground, 3) + peer(student, teacher, ~foreground, 12)
    weights = {"foreground_weight": front.at(), "background_weight": back.at()}
    ours = defeat_loss(student, teacher, foreground=foreground, **weights)
    torch.testing.assert_close(theirs, ours)


def terms(labels, size=(4, 4), *, teacher=0.0, **config):
    """The method's terms at a student that is 0 everywhere, for a teacher of the given values."""
    method = DeFeat(DeFeat.Config(**config))
    method.build(BuildContext({"head": TapInfo(2, 4)}, {"head": TapInfo(2, 4)}, 5))
    count = len(labels)
    images = torch.zeros(count, 3, *labels.shape[1:], dtype=torch.uint8)
    batch = Batch(images, labels, torch.ones_like(labels, dtype=torch.bool), torch.arange(count))
    values = torch.zeros(count, 2, *size)
    student = Outputs(values, {"head": values.clone().requires_grad_()})
    context = Context(batch, mask=method.config.mask)
    return method.loss(student, Outputs(values, {"head": values + teacher}), batch, context)


def counts(found):
    return found["foreground"].count.item(), found["background"].count.item()


@pytest.fixture
def lane():
    """A dotted lane of one pixel per cell, none where nearest neighbour looks, on road."""
    labels = torch.zeros(1, 16, 16, dtype=torch.long)
    labels[:, 2::4, 6] = 3
    return labels


def test_thin_foreground_survives_the_stride(lane):
    assert not (lane[:, ::4, ::4] == 3).any()
    assert counts(terms(lane, foreground=[3])) == (4, 12)


def test_a_thin_lane_with_an_unsure_rim_survives_the_stride(lane):
    lane[:, :, 4:6], lane[:, :, 7:9] = VOID, VOID  # what a cell is asked for is in the rim
    assert counts(terms(lane, foreground=[3])) == (4, 8)


def test_thin_classes_are_regions_of_their_own(lane):
    lane[:, 2::4, 14] = 4
    assert counts(terms(lane, foreground=[3, 4], regions=True)) == (2, 1)


def test_void_pixels_within_a_cell_make_no_foreground(lane):
    assert counts(terms(lane.masked_fill(lane == 3, VOID))) == (0, 16)


@pytest.mark.parametrize("mask", ["valid", "not_padding"])
def test_void_is_on_neither_side(lane, mask):
    lane[:, :4] = VOID
    assert counts(terms(lane, foreground=[3], mask=mask)) == (3, 9)
    assert counts(terms(lane, mask=mask)) == (3, 9)


def test_by_default_classes_below_the_images_mean_area_are_foreground():
    labels = torch.zeros(3, 16, 16, dtype=torch.long)
    labels[0, :4] = 1  # a quarter and three quarters: the mean is a half
    labels[1, 8:] = 1  # equal areas: nothing is small
    labels[2, :4], labels[2, 4:, :4] = VOID, 2  # void is no class
    assert counts(terms(labels)) == (4 + 3, 12 + 16 + 9)
    assert counts(terms(labels, foreground=[1])) == (4 + 8, 12 + 8 + 12)


def test_regions_give_each_class_of_an_image_the_same_weight():
    labels = torch.zeros(1, 16, 16, dtype=torch.long)
    labels[:, :4], labels[:, 4:8, :4] = 1, 2
    wrong_at_class_2 = torch.zeros(1, 1, 4, 4)
    wrong_at_class_2[..., 1, 0] = 3
    options = {"foreground": [1, 2], "teacher": wrong_at_class_2, "scale": "none"}
    by_pixel, by_class = terms(labels, **options), terms(labels, **options, regions=True)
    assert by_pixel["foreground"].value.item() == pytest.approx(9 / 5)
    assert by_class["foreground"].value.item() == pytest.approx(9 / 2)
    assert counts(by_class) == (2, 1)


@pytest.mark.parametrize("method", ["defeat", "fgd"])
def test_named_classes_are_not_copied_to_the_device_in_each_step(method):
    assert check_method(method, {"foreground": [1, 3]}, only="no_waiting").passed


def test_unknown_classes_are_refused():
    with pytest.raises(ConfigError, match=r"foreground has \[5, 7\], but the 5 classes"):
        terms(torch.zeros(1, 16, 16, dtype=torch.long), foreground=[1, 5, 7])


def test_regressor_leads_to_the_channels_of_the_teacher():
    method = DeFeat(DeFeat.Config(tap="stage4", teacher_tap="stage5"))
    assert method.needs.student == ("stage4",) and method.needs.teacher == ("stage5",)
    assert method.needs.labels
    method.build(BuildContext({"stage4": TapInfo(8, 16)}, {"stage5": TapInfo(32, 8)}, 5))
    assert isinstance(method.regressor, nn.Conv2d)
    assert method.regressor.weight.shape == (32, 8, 1, 1)
