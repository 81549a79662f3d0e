import pytest
import torch
from torch.nn.functional import mse_loss

from segkd.methods.base import BuildContext, TapInfo
from segkd.methods.irg import IRG, irg_loss
from segkd.testing.cases import make_case


def reference_edge(student, teacher):
    """The equation of the edges, pair by pair."""

    def edges(nodes):
        squares = [
            [sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) for y in nodes] for x in nodes
        ]
        largest = max(map(max, squares))
        return [square / largest for row in squares for square in row]

    pairs = zip(edges(student.tolist()), edges(teacher.tolist()), strict=True)
    return sum((s - t) ** 2 for s, t in pairs) / len(student) ** 2


def reference_transformation(student, teacher):
    """The equation of the moves, node by node; channels are averaged in equal groups."""

    def moves(early, late):
        width = min(early.shape[1], late.shape[1])
        early, late = (x.unflatten(1, (width, -1)).mean(2).tolist() for x in (early, late))
        squares = [
            sum((a - b) ** 2 for a, b in zip(x, y, strict=True))
            for x, y in zip(early, late, strict=True)
        ]
        return [square / max(squares) for square in squares]

    pairs = zip(moves(*student), moves(*teacher), strict=True)
    return sum((s - t) ** 2 for s, t in pairs) / len(student[0])


@pytest.fixture
def layers():
    draw = torch.Generator().manual_seed(7)
    shapes = (6, 2), (6, 4), (6, 6), (6, 3)
    nodes = [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]
    return [x.requires_grad_() for x in nodes[:2]], nodes[2:]


def only(kind, student, teacher, **options):
    weights = {f"{name}_weight": float(name == kind) for name in ("edge", "transformation")}
    return irg_loss(student, teacher, **weights, **options)


def test_edges_equal_the_equation(layers):
    student, teacher = layers
    expected = [reference_edge(x.detach(), teacher[1]) for x in student]
    assert only("edge", student, teacher).item() == pytest.approx(expected[1], rel=1e-12)
    both = only("edge", student, teacher, edges="all").item()
    assert both == pytest.approx(sum(expected) / 2, rel=1e-12)


def test_transformation_equals_the_equation(layers):
    student, teacher = layers
    expected = reference_transformation([x.detach() for x in student], teacher)
    value = only("transformation", student, teacher)
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_default_is_the_weighted_sum(layers):
    terms = [only(kind, *layers) for kind in ("edge", "transformation")]
    torch.testing.assert_close(irg_loss(*layers), 5 * terms[0] + 5 * terms[1])


@pytest.mark.parametrize("edges", ["last", "all"])
def test_gradient_is_right(layers, edges):
    student, teacher = layers
    assert torch.autograd.gradcheck(lambda *x: irg_loss(x, teacher, edges=edges), student)


def test_doubled_nodes_change_neither_value_nor_gradient(layers):
    student, teacher = layers
    twice = [x.detach().repeat(2, 1).requires_grad_() for x in student]
    once, doubled = irg_loss(*layers), irg_loss(twice, [x.repeat(2, 1) for x in teacher])
    torch.testing.assert_close(doubled, once)
    once.backward()
    doubled.backward()
    for found, expected in zip(twice, student, strict=True):
        torch.testing.assert_close(sum(found.grad.chunk(2)), expected.grad)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_and_dead_nodes_are_finite(count):
    for make in (torch.randn, torch.zeros):
        student = [make(count, 4).requires_grad_(), make(count, 2).requires_grad_()]
        value = irg_loss(student, [torch.randn(count, 3), torch.randn(count, 6)])
        value.backward()
        assert value.isfinite() and value.dtype is torch.float32
        assert all(x.grad.isfinite().all() for x in student)
        assert count > 0 or value == 0


def test_half_precision_is_raised(layers):
    half = [[x.detach().bfloat16() for x in side] for side in layers]
    with torch.autocast("cpu", torch.bfloat16):
        value = irg_loss(*half)
    assert value.dtype is torch.float32
    torch.testing.assert_close(value, irg_loss(*[[x.float() for x in side] for side in half]))


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        ([(4, 3), (4, 3), (4, 3)], "two layers"),
        ([(4, 3), (5, 3)], "the same nodes"),
        ([(9, 3), (9, 3)], "node_limit=8"),
    ],
)
def test_what_does_not_fit_is_refused(shapes, says):
    nodes = [torch.zeros(shape) for shape in shapes]
    with pytest.raises(ValueError, match=says):
        irg_loss(nodes, nodes, node_limit=8)


def test_unequal_node_counts_of_both_sides_are_refused():
    with pytest.raises(ValueError, match="expected nodes"):
        irg_loss([torch.zeros(4, 3)] * 2, [torch.zeros(5, 3)] * 2)


def peer_zoo(student, teacher, logits):
    """Zoo: clamped Gram distances over their maximum; of doubled channels every two averaged."""

    def edges(x):
        squares = x.square().sum(1)
        apart = (squares[:, None] + squares - 2 * x @ x.T).clamp(min=1e-12)
        apart = apart * (1 - torch.eye(len(x), dtype=x.dtype))
        return apart / apart.max()

    def moves(early, late):
        if early.shape[1] < late.shape[1]:
            late = (late[:, 0::2] + late[:, 1::2]) / 2
        apart = (early - late).square().sum(1).clamp(min=1e-12)
        return apart / apart.max()

    return (
        0.1 * mse_loss(*logits)
        + 5 * mse_loss(edges(student[1]), edges(teacher[1]))
        + 5 * mse_loss(moves(*student), moves(*teacher))
    )


def test_converted_weight_acts_as_the_peers():
    """All three terms, as weighted by default, on images that are their only region."""

    class Doubled(IRG):
        class Config(IRG.Config):
            nodes: str = "image"

    case = make_case(Doubled, equal=True, dtype=torch.float64)
    case.batch.labels[:], case.batch.not_padding[:] = 0, True
    late = torch.cat([case.student.tap("stage4").flip(1), case.student.tap("stage4").exp()], 1)
    case.student.features["stage5"] = late
    late = torch.cat([case.teacher.tap("stage4").flip(1), case.teacher.tap("stage4").exp()], 1)
    case.teacher.features["stage5"] = late
    student, teacher = (
        [outputs.tap(layer).mean((2, 3)) for layer in ("stage4", "stage5")]
        for outputs in (case.student, case.teacher)
    )
    (conversion,) = IRG.conversions.values()
    theirs = peer_zoo(student, teacher, (case.student.logits, case.teacher.logits))
    terms = case.terms().items()
    ours = sum(IRG.default_weights[name] * term.value for name, term in terms)
    torch.testing.assert_close(conversion.weight * theirs, conversion.at() * ours)


def test_layers_of_the_teacher_may_have_other_names():
    method = IRG(IRG.Config(layers=("stage3", "head"), teacher_layers=("stage4", "stage5")))
    assert method.needs.student == ("stage3", "head", "logits")
    assert method.needs.teacher == ("stage4", "stage5", "logits")
    taps = [{name: TapInfo(8, 8) for name in side} for side in (method.needs.student, "ab")]
    method.build(BuildContext(*taps, 5))
    assert not list(method.parameters())
