import math

import pytest
import torch

from segkd.methods.cc import CC, cc_loss
from segkd.testing.cases import make_case


def unit(row):
    length = math.sqrt(sum(x * x for x in row))
    return [x / length for x in row]


def reference(student, teacher, gamma, order):
    """The equation, pair by pair."""

    def kernel(a, b):
        dot = sum(x * y for x, y in zip(unit(a), unit(b), strict=True))
        powers = ((2 * gamma) ** p / math.factorial(p) * dot**p for p in range(order + 1))
        return math.exp(-2 * gamma) * sum(powers)

    student, teacher = student.tolist(), teacher.tolist()
    total = 0.0
    for i in range(len(student)):
        for j in range(len(student)):
            own, other = kernel(student[i], student[j]), kernel(teacher[i], teacher[j])
            total += (own - other) ** 2
    return total / len(student) ** 2


@pytest.fixture
def nodes():
    draw = torch.Generator().manual_seed(7)
    student = torch.randn(6, 3, generator=draw, dtype=torch.float64)
    teacher = torch.randn(6, 5, generator=draw, dtype=torch.float64)
    return student.requires_grad_(), teacher


@pytest.mark.parametrize(("gamma", "order"), [(0.4, 2), (0.4, 1), (1.5, 3)])
def test_equals_the_equation(nodes, gamma, order):
    student, teacher = nodes
    value = cc_loss(student, teacher, gamma=gamma, order=order)
    expected = reference(student.detach(), teacher, gamma, order)
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_a_long_series_is_the_gaussian_of_the_distance(nodes):
    student, teacher = nodes
    own, other = (torch.nn.functional.normalize(x.detach()) for x in nodes)
    gaussian = [torch.exp(-0.4 * torch.cdist(x, x).square()) for x in (own, other)]
    expected = (gaussian[0] - gaussian[1]).square().mean()
    torch.testing.assert_close(cc_loss(student, teacher, order=12).detach(), expected)


def test_bilinear_compares_cosines(nodes):
    own, other = (torch.nn.functional.normalize(x.detach()) for x in nodes)
    expected = (own @ own.T - other @ other.T).square().mean()
    torch.testing.assert_close(cc_loss(*nodes, kernel="bilinear").detach(), expected)


@pytest.mark.parametrize("kernel", ["rbf", "bilinear"])
def test_gradient_is_right(nodes, kernel):
    student, teacher = nodes
    assert torch.autograd.gradcheck(lambda x: cc_loss(x, teacher, kernel=kernel), student)


def test_neither_order_nor_doubling_of_nodes_matters(nodes):
    student, teacher = nodes
    expected = cc_loss(student, teacher)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(cc_loss(student[order], teacher[order]), expected)
    torch.testing.assert_close(cc_loss(student.repeat(2, 1), teacher.repeat(2, 1)), expected)


def test_the_loss_of_consecutive_samples_depends_on_their_order(nodes):
    """RepDistiller's loss of this name, on embeddings of equal width: not what is done here."""
    student, teacher = nodes
    delta = (student - teacher[:, :3]).detach().abs()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    values = [(d[:-1] * d[1:]).sum(1).mean() for d in (delta, delta[order])]
    assert abs(values[0] - values[1]) > 0.1


def test_dead_nodes_and_no_nodes_are_finite():
    student = torch.randn(4, 3)
    student[1] = 0
    student.requires_grad_()
    value = cc_loss(student, torch.randn(4, 3))
    value.backward()
    assert value.isfinite() and not student.grad[1].any() and student.grad.abs().max() < 1e3
    empty = torch.zeros(0, 3, requires_grad=True)
    value = cc_loss(empty, torch.zeros(0, 2))
    value.backward()
    assert value == 0 and empty.grad.shape == (0, 3)


def test_half_precision_is_raised(nodes):
    student, teacher = (x.detach().bfloat16() for x in nodes)
    with torch.autocast("cpu", torch.bfloat16):
        value = cc_loss(student, teacher)
    assert value.dtype is torch.float32
    torch.testing.assert_close(value, cc_loss(student.float(), teacher.float()))


@pytest.mark.parametrize(
    ("shapes", "says"),
    [(((4, 3), (5, 3)), "expected nodes"), (((9, 3), (9, 3)), "node_limit=8")],
)
def test_what_does_not_fit_is_refused(shapes, says):
    with pytest.raises(ValueError, match=says):
        cc_loss(*map(torch.zeros, shapes), node_limit=8)


@pytest.mark.parametrize("keys", [{"kernel": "mmd"}, {"gamma": 0}, {"order": 0}, {"order": 9}])
def test_bad_options_are_refused(keys):
    with pytest.raises(ValueError, match=next(iter(keys))):
        CC.Config(**keys)


def peer_zoo(student, teacher, gamma=0.4, order=2):
    """Mean of squared differences of correlation matrices, the series with its constant."""
    matrices = []
    for x in (student, teacher):
        cosine = torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=2)
        terms = [(2 * gamma) ** p / math.factorial(p) * cosine**p for p in range(order + 1)]
        matrices.append(math.exp(-2 * gamma) * sum(terms))
    return torch.nn.functional.mse_loss(*matrices)


def test_converted_weight_acts_as_the_peers(nodes):
    (conversion,) = CC.conversions.values()
    theirs = conversion.weight * peer_zoo(*nodes)
    torch.testing.assert_close(theirs, conversion.at() * cc_loss(*nodes))
    assert CC.paper_weight == conversion.at()


def test_options_of_the_config_are_used():
    def value(**keys):
        case = make_case(CC)
        case.method.config = CC.Config(**keys)
        return case.terms()["cc"].value.item()

    values = [value(), value(kernel="bilinear"), value(gamma=1.0), value(order=3)]
    assert len(set(values)) == 4
