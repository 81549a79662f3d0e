import math

import pytest
import torch

from segkd.methods.base import BuildContext, TapInfo
from segkd.methods.sp import SP, sp_loss
from segkd.testing.cases import make_case


def reference(student, teacher):
    """The equation, pair by pair."""

    def rows(nodes):
        products = [[sum(map(float.__mul__, a, b)) for b in nodes] for a in nodes]
        norms = [math.sqrt(sum(g * g for g in row)) for row in products]
        return [[g / n for g in row] for row, n in zip(products, norms, strict=True)]

    pairs = zip(rows(student.tolist()), rows(teacher.tolist()), strict=True)
    values = [sum((t - s) ** 2 for s, t in zip(*pair, strict=True)) for pair in pairs]
    return sum(values) / len(values)


@pytest.fixture
def nodes():
    draw = torch.Generator().manual_seed(7)
    student = torch.randn(6, 3, generator=draw, dtype=torch.float64)
    teacher = torch.randn(6, 5, generator=draw, dtype=torch.float64)
    return student.requires_grad_(), teacher


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(7)
    student = torch.randn(4, 3, 4, 6, generator=draw, dtype=torch.float64)
    teacher = torch.randn(4, 2, 2, 3, generator=draw, dtype=torch.float64)
    mask = torch.rand(4, 2, 3, generator=draw) > 0.3
    mask[1] = False
    return student.requires_grad_(), teacher, mask


def test_equals_the_equation(nodes):
    student, teacher = nodes
    expected = reference(student.detach(), teacher)
    assert sp_loss(student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_images_of_maps_are_nodes_of_all_their_valid_values(maps):
    student, teacher, mask = maps
    small = torch.nn.functional.adaptive_avg_pool2d(student.detach(), (2, 3))
    rows = [(x * mask.unsqueeze(1)).flatten(1)[[0, 2, 3]] for x in (small, teacher)]
    value = sp_loss(student, teacher, mask=mask)
    assert value.item() == pytest.approx(reference(*rows), rel=1e-12)


def test_gradient_is_right(nodes, maps):
    student, teacher = nodes
    assert torch.autograd.gradcheck(lambda x: sp_loss(x, teacher), student)
    student, teacher, mask = maps
    assert torch.autograd.gradcheck(lambda x: sp_loss(x, teacher, mask=mask), student)


def test_scale_and_channels_are_free_and_equal_nodes_cost_nothing(nodes):
    student, teacher = nodes
    expected = sp_loss(student, teacher)
    torch.testing.assert_close(sp_loss(3e-9 * student, 1e12 * teacher), expected)
    assert sp_loss(torch.cat([student, 2 * student], 1), student).item() < 1e-20


def test_doubled_nodes_and_larger_maps_change_nothing(nodes, maps):
    student, teacher = nodes
    doubled = sp_loss(student.repeat(2, 1), teacher.repeat(2, 1))
    torch.testing.assert_close(doubled, sp_loss(student, teacher))
    student, teacher, mask = maps
    equal = student[..., ::2, ::2], teacher, mask
    large = [x.repeat_interleave(2, -1).repeat_interleave(2, -2) for x in equal]
    torch.testing.assert_close(
        sp_loss(large[0], large[1], mask=large[2]), sp_loss(*equal[:2], mask=mask)
    )


def test_one_image_alone_teaches_nothing():
    student = torch.randn(1, 3, 2, 2, requires_grad=True)
    value = sp_loss(student, torch.randn(1, 5, 2, 2))
    value.backward()
    assert value < 1e-12 and student.grad.abs().max() < 1e-6


def test_dead_nodes_and_no_nodes_are_finite():
    student = torch.randn(4, 3)
    student[1] = 0
    student.requires_grad_()
    value = sp_loss(student, torch.randn(4, 3))
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all() and student.grad.abs().max() < 1e3
    for dead in (torch.zeros(3, 2, requires_grad=True), torch.zeros(0, 2, requires_grad=True)):
        value = sp_loss(dead, torch.zeros(len(dead), 2))
        value.backward()
        assert value == 0 and not dead.grad.any()


def test_half_precision_does_not_overflow_in_large_products():
    student = torch.full((2, 1, 256, 512), 30.0, dtype=torch.float16)
    student[1, :, :128] = -30
    assert (student.flatten(1) @ student.flatten(1).T).isinf().any()
    with torch.autocast("cpu", torch.bfloat16):
        value = sp_loss(student, student.float().flip(-1))
    assert value.dtype is torch.float32 and value.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("shapes", "options", "says"),
    [
        (((4, 3), (5, 3)), {}, r"\(5, 3\)"),
        (((4, 3), (4, 3, 2)), {}, "node_sampler"),
        (((9, 3), (9, 3)), {"node_limit": 8}, "node_limit=8"),
        (((4, 3), (4, 3)), {"mask": torch.ones(4).bool()}, "remove invalid nodes"),
        (((2, 3, 4, 4), (2, 3, 4, 4)), {"mask": torch.ones(2, 3, 4).bool()}, "mask"),
    ],
)
def test_what_does_not_fit_is_refused(shapes, options, says):
    with pytest.raises(ValueError, match=says):
        sp_loss(*map(torch.zeros, shapes), **options)


def peer(student, teacher):
    """RepDistiller: the squared Frobenius norm over the number of pairs."""
    s, t = (torch.nn.functional.normalize(x @ x.T) for x in (student, teacher))
    return (s - t).square().sum() / len(s) ** 2


def test_converted_weight_acts_as_the_peers(nodes):
    (conversion,) = SP.conversions.values()
    theirs = conversion.weight * peer(*nodes)
    torch.testing.assert_close(theirs, conversion.at(N=6) * sp_loss(*nodes))
    assert SP.paper_weight == pytest.approx(conversion.at(N=64), abs=0.2)


def test_needs_follow_the_config():
    assert SP().needs.labels and SP().needs.student == SP().needs.teacher == ("head",)
    method = SP(SP.Config(nodes="image", tap="stage4", teacher_tap="stage5"))
    assert not method.needs.labels and method.needs.teacher == ("stage5",)
    method.build(BuildContext({"stage4": TapInfo(8, 16)}, {"stage5": TapInfo(32, 8)}, 5))
    assert not list(method.parameters())


def test_images_of_all_processes_are_related():
    class Images(SP):
        class Config(SP.Config):
            nodes: str = "image"

    case = make_case(Images, dtype=torch.float64)
    sent = []
    for part in (slice(0, 3), slice(3, 4)):
        share, calls = case.images(part), []
        context = share.context(share.batch)
        context.gather = lambda x, calls=calls: calls.append(x) or x
        share.method.loss(share.student, share.teacher, share.batch, context)
        sent.append(calls)
    mask, maps, target = (torch.cat(parts) for parts in zip(*sent, strict=True))
    torch.testing.assert_close(sp_loss(maps, target, mask=mask), case.terms()["sp"].value)


def test_of_more_images_than_the_limit_a_random_part_is_taken():
    case = make_case(SP, dtype=torch.float64, config=SP.Config(nodes="image", node_limit=2))
    images = len(case.batch)
    assert images > 2
    found = case.terms()["sp"].value
    everyone = make_case(SP, dtype=torch.float64, config=SP.Config(nodes="image"))
    assert found.isfinite() and found != everyone.terms()["sp"].value
    assert found == case.fresh().terms()["sp"].value  # by the generator of the step
