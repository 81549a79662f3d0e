import math

import pytest
import torch
import torch.nn.functional as F

from segkd.errors import ConfigError
from segkd.methods.at import AT, at_loss


def attention(features, valid, over_channels, power):
    """One image's normalised map as a list, from loops over positions and channels."""
    values = []
    for y, x in valid.nonzero().tolist():
        sizes = [abs(a) ** power for a in features[:, y, x].tolist()]
        values.append(sum(sizes) if over_channels == "sum" else max(sizes))
    norm = math.sqrt(sum(value**2 for value in values))
    return [value / norm for value in values]


def reference(student, teacher, mask, over_channels="sum", power=2.0):
    per_image = []
    for s_map, t_map, valid in zip(student, teacher, mask, strict=True):
        if valid.any():
            q_s, q_t = (attention(a, valid, over_channels, power) for a in (s_map, t_map))
            per_image.append(sum((s - t) ** 2 for s, t in zip(q_s, q_t, strict=True)))
    return sum(per_image) / len(per_image)


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(7)
    student = 2 * torch.randn(3, 4, 3, 5, generator=draw, dtype=torch.float64)
    teacher = 2 * torch.randn(3, 6, 3, 5, generator=draw, dtype=torch.float64)
    mask = torch.rand(3, 3, 5, generator=draw) > 0.3
    mask[1] = False
    return student.requires_grad_(), teacher.requires_grad_(), mask


FORMS = [("sum", 1.0), ("sum", 2.0), ("sum", 3.0), ("max", 2.0), ("max", 3.0)]


@pytest.mark.parametrize(("over_channels", "power"), FORMS)
def test_equals_the_equation(maps, over_channels, power):
    student, teacher, mask = maps
    value = at_loss(student, teacher, mask=mask, over_channels=over_channels, power=power)
    expected = reference(student.detach(), teacher.detach(), mask, over_channels, power)
    assert value.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("over_channels", "power"), FORMS)
def test_gradient_is_right_and_none_goes_to_the_teacher(maps, over_channels, power):
    student, teacher, mask = maps
    options = {"mask": mask, "over_channels": over_channels, "power": power}
    assert torch.autograd.gradcheck(lambda a: at_loss(a, teacher, **options), student)
    at_loss(student, teacher, **options).backward()
    assert teacher.grad is None


def test_odd_powers_see_the_size_and_not_the_sign(maps):
    student, teacher, mask = maps
    flipped = at_loss(-student, teacher, mask=mask, power=3.0)
    assert flipped == at_loss(student, teacher, mask=mask, power=3.0)


def test_scale_of_the_features_is_no_matter(maps):
    student, teacher, mask = maps
    expected = at_loss(student, teacher, mask=mask)
    for scale in (1e-3, 1e4):
        torch.testing.assert_close(at_loss(scale * student, teacher, mask=mask), expected)


@pytest.mark.parametrize(("over_channels", "power"), FORMS)
def test_maps_of_zeros_have_a_finite_gradient(maps, over_channels, power):
    _, teacher, _ = maps
    student = torch.zeros(3, 4, 3, 5, requires_grad=True)
    value = at_loss(student, teacher.float(), over_channels=over_channels, power=power)
    value.backward()
    assert value.item() == pytest.approx(1.0)
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0, 3.0])
def test_single_zeros_have_a_finite_gradient(maps, power):
    student, teacher, mask = maps
    dead = student.detach().clamp(min=0).requires_grad_()
    at_loss(dead, teacher, mask=mask, power=power).backward()
    assert dead.grad.isfinite().all()


def test_no_map_of_the_features_size_is_kept(maps):
    student, teacher, mask = maps
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        at_loss(student, teacher, mask=mask)
    large = [x for x in kept if x.numel() >= student.numel()]
    assert all(x.data_ptr() == student.data_ptr() for x in large)


def test_large_features_do_not_overflow(maps):
    student, teacher, mask = maps
    expected = at_loss(student, teacher, mask=mask, power=4.0)
    value = at_loss(1e4 * student.float(), teacher.float(), mask=mask, power=4.0)
    torch.testing.assert_close(value, expected.float())


def test_without_a_mask_all_positions_count(maps):
    student, teacher, mask = maps
    assert at_loss(student, teacher) == at_loss(student, teacher, mask=torch.ones_like(mask))


def test_maps_are_made_before_they_are_resized():
    checkers = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(1, 1, 2, 4)
    ramp = torch.arange(8.0).view(1, 1, 2, 4)
    value = at_loss(checkers.repeat_interleave(2, 2)[:, :, :4], ramp)
    flat = torch.ones(1, 1, 2, 4)
    torch.testing.assert_close(value, at_loss(flat, ramp))


def peer(student, teacher):
    """Mean of squares over channels, normalised over positions, mean over everything."""
    q_s, q_t = (F.normalize(a.pow(2).mean(1).flatten(1)) for a in (student, teacher))
    return (q_s - q_t).pow(2).mean()


PEERS = {"attention-transfer": peer, "RepDistiller, mdistiller": peer, "CIRKD": peer}


def test_every_conversion_is_checked():
    assert PEERS.keys() == AT.conversions.keys()


@pytest.mark.parametrize("name", PEERS)
def test_converted_weight_acts_as_the_peers(maps, name):
    student, teacher, _ = maps
    theirs = AT.conversions[name].weight * PEERS[name](student, teacher)
    weight = AT.conversions[name].at(h=3, w=5)
    torch.testing.assert_close(theirs, weight * at_loss(student, teacher))


def test_taps_are_paired_in_order():
    config = AT.Config(taps=["stage2", "head"], teacher_taps=["stage3", "stage5"])
    needs = AT(config).needs
    assert needs.student == ("stage2", "head") and needs.teacher == ("stage3", "stage5")


@pytest.mark.parametrize(
    ("taps", "teacher_taps", "text"),
    [
        ([], [], "at least one"),
        (["head", "head"], [], "no duplicates"),
        (["head"], ["stage4", "head"], "1 taps but 2 teacher_taps"),
    ],
)
def test_taps_that_cannot_be_paired_are_refused(taps, teacher_taps, text):
    with pytest.raises(ConfigError, match=text):
        AT(AT.Config(taps=taps, teacher_taps=teacher_taps))


def test_a_power_below_one_is_refused():
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        AT.Config(power=0.5)
