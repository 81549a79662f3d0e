import math

import pytest
import torch
from pydantic import Field
from torch.nn.functional import normalize, smooth_l1_loss

from segkd.methods import rkd
from segkd.methods.rkd import RKD, rkd_loss
from segkd.ops.blocks import BlockSize
from segkd.ops.nodes import distances
from segkd.testing.cases import make_case


def smooth_l1(x):
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def reference_distance(student, teacher):
    """The equation of L_D, pair by pair."""

    def relative(nodes):
        apart = [[math.dist(a, b) for b in nodes] for a in nodes]
        positive = [d for row in apart for d in row if d > 0]
        mean = sum(positive) / len(positive)
        return [d / mean for row in apart for d in row]

    pairs = zip(relative(student.tolist()), relative(teacher.tolist()), strict=True)
    return sum(smooth_l1(s - t) for s, t in pairs) / len(student) ** 2


def reference_angle(student, teacher):
    """The equation of L_A, triplet by triplet."""

    def cosine(nodes, i, j, k):
        a, b = nodes[i] - nodes[j], nodes[k] - nodes[j]
        length = a.norm() * b.norm()
        return (a @ b / length).item() if length > 0 else 0.0

    total = 0.0
    for i, j, k in torch.cartesian_prod(*[torch.arange(len(student))] * 3).tolist():
        total += smooth_l1(cosine(student, i, j, k) - cosine(teacher, i, j, k))
    return total / len(student) ** 3


@pytest.fixture
def nodes():
    draw = torch.Generator().manual_seed(7)
    student = torch.randn(6, 3, generator=draw, dtype=torch.float64)
    teacher = torch.randn(6, 5, generator=draw, dtype=torch.float64)
    teacher[4] = teacher[1]
    student[0] *= 9  # bends of smooth L1 on both sides
    return student.requires_grad_(), teacher


@pytest.fixture(params=[1, 80, 2**20], ids=["node by node", "some", "all at once"])
def block(request, monkeypatch):
    monkeypatch.setattr(rkd, "_BLOCK", BlockSize(request.param, request.param))


def only(kind, student, teacher, **options):
    weights = {"distance_weight": float(kind == "distance"), "angle_weight": float(kind == "angle")}
    return rkd_loss(student, teacher, **weights, **options)


def test_distances_equal_the_equation(nodes):
    student, teacher = nodes
    expected = reference_distance(student.detach(), teacher)
    assert only("distance", student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_angles_equal_the_equation(nodes, block):
    student, teacher = nodes
    expected = reference_angle(student.detach(), teacher)
    assert only("angle", student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_default_is_the_weighted_sum(nodes):
    terms = [only(kind, *nodes) for kind in ("distance", "angle")]
    torch.testing.assert_close(rkd_loss(*nodes), 25 * terms[0] + 50 * terms[1])


@pytest.mark.parametrize("normalized", [False, True])
def test_gradient_is_right(nodes, block, normalized):
    student, teacher = nodes
    assert torch.autograd.gradcheck(
        lambda x: only("angle", x, teacher, normalize=normalized), student
    )
    assert torch.autograd.gradcheck(
        lambda x: only("distance", x, teacher, normalize=normalized), student
    )


@pytest.mark.parametrize("kind", ["distance", "angle"])
def test_nodes_that_are_there_twice_change_neither_value_nor_gradient(nodes, kind):
    student, teacher = nodes
    twice = student.detach().repeat(2, 1).requires_grad_()
    once, doubled = only(kind, student, teacher), only(kind, twice, teacher.repeat(2, 1))
    torch.testing.assert_close(doubled, once, rtol=1e-12, atol=0)
    once.backward()
    doubled.backward()
    torch.testing.assert_close(sum(twice.grad.chunk(2)), student.grad)


def naive(student, teacher):
    """Distances as the root of a sum of squares."""
    s, t = ((x[:, None] - x[None]).square().sum(2).sqrt() for x in (student, teacher))
    return smooth_l1_loss(s / s[s > 0].mean(), t / t[t > 0].mean())


def peer_distance(student, teacher):
    """Public codes: the root of a clamped Gram form, its diagonal set to 0."""

    def relative(x):
        squares = x.square().sum(1)
        apart = (squares[:, None] + squares - 2 * x @ x.T).clamp(min=1e-12).sqrt()
        apart = apart * (1 - torch.eye(len(x), dtype=x.dtype))
        return apart / apart[apart > 0].mean()

    return smooth_l1_loss(relative(student), relative(teacher))


def peer_angle(student, teacher):
    """Public codes: unit differences, batch by batch of inner products."""
    s, t = (normalize(x[None] - x[:, None], dim=2) for x in (student, teacher))
    return smooth_l1_loss(s @ s.mT, t @ t.mT)


def test_equal_nodes_are_finite_where_the_naive_root_is_not(nodes):
    student, teacher = nodes
    equal = torch.cat([student.detach()[:1], student.detach()]).requires_grad_()
    target = torch.cat([teacher[:1], teacher])
    (broken,) = torch.autograd.grad(naive(equal, target), equal)
    (found,) = torch.autograd.grad(rkd_loss(equal, target), equal)
    assert broken.isnan().any() and found.isfinite().all()


def test_equal_nodes_do_not_bias_the_mean_as_the_clamped_root_does(nodes):
    student, teacher = (x.detach().repeat(2, 1) for x in nodes)
    once = peer_distance(*(x.detach()[[0, 1, 2, 3, 5]] for x in nodes))
    clean = [x[[0, 1, 2, 3, 5, 6, 7, 8, 9, 11]] for x in (student, teacher)]
    assert abs(peer_distance(*clean) - once) > 1e-3
    torch.testing.assert_close(only("distance", *clean), once)


def test_short_sides_beside_long_ones_keep_their_angles():
    draw = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 4, 8, generator=draw)
    student[2:] = student[:2] + 1e-3 * student[2:]
    student[0] += 1000
    student[2] = student[0] + 0.05 * torch.randn(8, generator=draw)
    expected = reference_angle(student.double(), teacher.double())
    assert only("angle", student, teacher).item() == pytest.approx(expected, rel=1e-6)


def test_rounding_does_not_part_equal_nodes():
    student = torch.randn(1, 64, dtype=torch.float64).repeat(2, 1)
    student[1] *= 1 + 1e-12
    apart = distances(torch.cat([student, torch.randn(1, 64, dtype=torch.float64)]))
    assert apart[0, 1] == 0 and apart[0, 2] > 0


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_and_dead_nodes_are_finite(count):
    for student in (torch.randn(count, 3), torch.zeros(count, 3)):
        student.requires_grad_()
        value = rkd_loss(student, torch.randn(count, 4))
        value.backward()
        assert value.isfinite() and student.grad.isfinite().all()
        assert count > 1 or value == 0


def test_half_precision_is_raised(nodes):
    student, teacher = (x.detach().bfloat16() for x in nodes)
    with torch.autocast("cpu", torch.bfloat16):
        value = rkd_loss(student, teacher)
    assert value.dtype is torch.float32
    torch.testing.assert_close(value, rkd_loss(student.float(), teacher.float()))


@pytest.mark.parametrize(
    ("shapes", "says"),
    [(((4, 3), (5, 3)), "expected nodes"), (((9, 3), (9, 3)), "M³")],
)
def test_what_does_not_fit_is_refused(shapes, says):
    with pytest.raises(ValueError, match=says):
        rkd_loss(*map(torch.zeros, shapes), node_limit=8)


PEERS = {
    "RepDistiller, mdistiller": (25, 50, False),
    "mmrazor": (25, 50, True),
    "authors, metric learning": (1, 2, False),
}


def test_every_conversion_is_checked():
    assert PEERS.keys() == RKD.conversions.keys()


@pytest.mark.parametrize("peer", PEERS)
def test_converted_weight_acts_as_the_peers(nodes, peer):
    student, teacher = (x.detach()[[0, 1, 2, 3, 5]] for x in nodes)
    pair_wise, angle_wise, normalized = PEERS[peer]
    pair = [normalize(x) if normalized else x for x in (student, teacher)]
    theirs = pair_wise * peer_distance(*pair) + angle_wise * peer_angle(*pair)
    ours = rkd_loss(
        student,
        teacher,
        distance_weight=pair_wise,
        angle_weight=angle_wise,
        normalize=normalized,
    )
    assert RKD.conversions[peer].weight == 1
    torch.testing.assert_close(theirs, ours)


def test_weight_0_saves_the_angles(nodes, monkeypatch):
    class DistanceOnly(RKD):
        class Config(RKD.Config):
            weights: dict[str, float] = Field({"angle": 0})

    monkeypatch.setattr("segkd.methods.rkd.angle_distance", None)
    assert only("distance", *nodes) > 0
    assert make_case(DistanceOnly).terms().keys() == {"distance"}
