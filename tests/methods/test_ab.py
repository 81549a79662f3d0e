import pytest
import torch
from torch import nn

from segkd.methods.ab import AB, ab_loss
from segkd.methods.base import BuildContext, Context, TapInfo, TapNames
from segkd.structures import Batch, Outputs

TAPS = ("stage3:pre", "stage4:pre", "stage5:pre")


def reference(student, teacher, mask, margin):
    """The equation, element by element."""
    values = []
    for b, y, x in mask.nonzero().tolist():
        for c in range(student.shape[1]):
            s, active = student[b, c, y, x].item(), teacher[b, c, y, x].item() > 0
            values.append(max(0.0, margin - s if active else margin + s) ** 2)
    return sum(values) / len(values)


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(5)
    student, teacher = 2 * torch.randn(2, 3, 4, 3, 5, generator=draw, dtype=torch.float64)
    mask = torch.rand(3, 3, 5, generator=draw) > 0.3
    mask[1] = False
    return student.requires_grad_(), teacher.requires_grad_(), mask


@pytest.mark.parametrize("margin", [1.0, 0.3])
def test_equals_the_equation(maps, margin):
    student, teacher, mask = maps
    value = ab_loss(student, teacher, mask=mask, margin=margin)
    assert value.item() == pytest.approx(reference(student, teacher, mask, margin), rel=1e-12)
    everywhere = torch.ones_like(mask)
    assert ab_loss(student, teacher).item() == pytest.approx(
        reference(student, teacher, everywhere, 1.0), rel=1e-12
    )


def test_gradient_is_right_and_none_goes_to_the_teacher(maps):
    student, teacher, mask = maps
    assert torch.autograd.gradcheck(lambda a: ab_loss(a, teacher, mask=mask), student)
    ab_loss(student, teacher, mask=mask).backward()
    assert teacher.grad is None


def one_value(student, teacher, **options):
    pair = (torch.tensor([float(v)]).view(1, 1, 1, 1) for v in (student, teacher))
    return ab_loss(*pair, **options).item()


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (1.0, 5.0, 0.0),  # far enough on the right side
        (3.0, 0.1, 0.0),  # however small the teacher's value
        (0.2, 0.1, 0.64),  # on the right side, but within the margin
        (-1.0, 2.0, 4.0),
        (-1.0, -0.1, 0.0),
        (0.5, -7.0, 2.25),
        (0.5, 0.0, 2.25),  # a neuron at 0 is not active
        (-2.0, 0.0, 0.0),
    ],
)
def test_only_the_side_of_the_boundary_matters(student, teacher, expected):
    assert one_value(student, teacher) == pytest.approx(expected)


def test_the_size_of_the_teachers_values_does_not_matter(maps):
    student, teacher, mask = maps
    value = ab_loss(student, teacher, mask=mask)
    assert ab_loss(student, 1000 * teacher, mask=mask) == value
    assert ab_loss(student, teacher.relu(), mask=mask) == value  # a ReLU keeps the sign


def test_of_larger_maps_the_share_of_active_neurons_counts():
    teacher = torch.tensor([[5.0, -1.0], [-100.0, -1.0]]).view(1, 1, 2, 2)
    value = ab_loss(torch.full((1, 1, 1, 1), 0.5), teacher)
    assert value.item() == pytest.approx((0.25 + 3 * 2.25) / 4)  # not that of the mean, -24


def peer(student, teacher, margin):
    """The public code: the sum over everything by the number of images, times 3/1000."""
    inactive = (student + margin) ** 2 * ((student > -margin) & (teacher <= 0)).double()
    active = (student - margin) ** 2 * ((student <= margin) & (teacher > 0)).double()
    return (inactive + active).abs().sum() / len(student) / 1000 * 3


@pytest.mark.parametrize(("name", "share"), list(zip(AB.conversions, (1, 1 / 3), strict=True)))
def test_converted_weight_acts_as_the_peers(maps, name, share):
    student, teacher, _ = maps
    ours = AB.conversions[name].at(C_t=4, h=3, w=5) * ab_loss(student, teacher)
    torch.testing.assert_close(share * peer(student, teacher, 1.0), ours)


def built(channels=(3, 5), taps=TAPS, **options):
    torch.manual_seed(0)
    method = AB(AB.Config(**options))
    mine, theirs = ({tap: TapInfo(c, 8) for tap in taps} for c in channels)
    method.build(BuildContext(mine, theirs, 5))
    return method


def test_deeper_taps_weigh_twice_as_much_each():
    assert AB().default_weights == AB.default_weights
    method = AB()
    method.bind_taps(TapNames(("stage1", "stage2", "head")), TapNames(("stage3", "stage4")))
    assert method.default_weights == {"stage1:pre": 0.5, "stage2:pre": 1.0}
    assert AB(AB.Config(taps=["head", "logits"])).default_weights == {"head": 0.5, "logits": 1.0}


def test_a_connector_starts_near_zero_and_is_there_for_unequal_channels_only():
    method = built()
    for connect in method.connectors:
        assert connect.weight.shape == (5, 3, 1, 1) and not connect.bias.any()
        assert connect(torch.randn(1, 3, 8, 8)).abs().max() < 0.1
    assert all(isinstance(one, nn.Identity) for one in built((4, 4)).connectors)


def test_the_margin_is_in_units_of_the_teachers_features():
    """Both sides times a factor: the same loss; with `scale: none` values are as they are."""
    batch = Batch(torch.zeros(2, 3, 32, 32), None, torch.ones(2, 32, 32) > 0, torch.arange(2))
    student = {tap: torch.randn(2, 4, 4, 4) for tap in TAPS}
    teacher = {tap: 5 * torch.randn(2, 4, 4, 4) for tap in TAPS}
    logits = torch.zeros(2, 5, 4, 4)
    for scale, unit in (("teacher", None), ("none", 1.0)):
        method = built((4, 4), scale=scale)
        terms = method.loss(
            Outputs(logits, student), Outputs(logits, teacher), batch, Context(batch)
        )
        for tap in TAPS:
            rms = unit or teacher[tap].square().mean().sqrt()
            expected = ab_loss(student[tap] / rms, teacher[tap])
            torch.testing.assert_close(terms[tap].value, expected)


def test_channels_that_differ_are_refused(maps):
    student, teacher, _ = maps
    with pytest.raises(ValueError, match="channel_adapter"):
        ab_loss(student[:, :3], teacher)
