import math

import pytest
import torch

from segkd.methods.base import BuildContext, Context, TapInfo
from segkd.methods.gkd import GKD, TeacherQuery, gkd_loss
from segkd.structures import Batch, Outputs
from segkd.testing import check_method

F64 = torch.float64


def times(matrix, vector):
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


def normed(vector):
    mean = sum(vector) / len(vector)
    variance = sum((x - mean) ** 2 for x in vector) / len(vector)
    return [(x - mean) / math.sqrt(variance + 1e-5) for x in vector]


def reference(student, teacher, mask, query):
    """The equation, position by position."""
    w_q, w_v = query.query.weight.tolist(), query.value.weight.tolist()
    total, count = 0.0, 0
    for s_map, t_map, valid in zip(student, teacher, mask, strict=True):
        mine, theirs = (x[:, valid].T.tolist() for x in (s_map, t_map))
        values = [times(w_v, normed(node)) for node in mine]
        for node, target in zip(mine, theirs, strict=True):
            asked = times(w_q, normed(node))
            products = [sum(a * b for a, b in zip(asked, key, strict=True)) for key in theirs]
            powers = [math.exp(product) for product in products]
            for channel, wanted in enumerate(target):
                found = sum(p * v[channel] for p, v in zip(powers, values, strict=True))
                total += (found / sum(powers) - wanted) ** 2
                count += 1
    return total / count


@pytest.fixture
def maps():
    """Unequal channels; images with all, some and no valid positions."""
    draw = torch.Generator().manual_seed(7)
    student = torch.randn(3, 3, 3, 4, generator=draw, dtype=F64)
    teacher = torch.randn(3, 5, 3, 4, generator=draw, dtype=F64)
    mask = torch.rand(3, 3, 4, generator=draw) > 0.3
    mask[0], mask[2] = True, False
    return student.requires_grad_(), teacher, mask


def make(in_channels, out_channels, seed=0):
    torch.manual_seed(seed)
    query = TeacherQuery(in_channels, out_channels).double()
    with torch.no_grad():
        for layer in (query.query, query.value):
            layer.weight.copy_(0.5 * torch.randn_like(layer.weight))
    return query


def test_equals_the_equation_and_its_gradient_is_right(maps):
    student, teacher, mask = maps
    query = make(3, 5)

    def loss(features):
        return gkd_loss(features, teacher, query=query, mask=mask)

    expected = reference(student.detach(), teacher, mask, query)
    assert loss(student).item() == pytest.approx(expected, rel=1e-9)
    assert torch.autograd.gradcheck(loss, student)


def test_masked_positions_are_neither_queries_nor_keys(maps):
    student, teacher, mask = maps
    query, hidden = make(3, 5), ~mask.unsqueeze(1)
    before = gkd_loss(student, teacher, query=query, mask=mask)
    noise = 9 * torch.randn_like(student) * hidden, 9 * torch.randn_like(teacher) * hidden
    after = gkd_loss(student + noise[0], teacher + noise[1], query=query, mask=mask)
    torch.testing.assert_close(after, before)
    (gradient,) = torch.autograd.grad(before, student)
    assert not gradient.masked_fill(~hidden, 0).any() and gradient.any()
    # A key that is 0 would still take its share of a softmax.
    half = torch.zeros_like(mask)
    half[..., :2] = True
    alone = gkd_loss(student[..., :2], teacher[..., :2], query=query)
    torch.testing.assert_close(gkd_loss(student, teacher, query=query, mask=half), alone)


def trained(student, teacher, steps=300):
    """The loss after the module alone has learned on these maps."""
    query = make(student.shape[1], teacher.shape[1])
    optimizer = torch.optim.Adam(query.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = gkd_loss(student, teacher, query=query)
        loss.backward()
        optimizer.step()
    return gkd_loss(student, teacher, query=query).item()


def test_the_module_cannot_predict_the_teacher_without_the_student():
    """Values are the student's. One that is 0 leaves the teacher's mean square, whatever is
    learned; one that is constant the variance around a constant; one that knows, neither."""
    torch.manual_seed(0)
    teacher = torch.randn(2, 4, 4, 5, dtype=F64) + torch.tensor([2.0, 0, 0, -1])[:, None, None]
    mixed = torch.einsum("oc,bchw->bohw", torch.randn(6, 4, dtype=F64), teacher)
    square = teacher.square().mean().item()
    variance = teacher.var((0, 2, 3), correction=0).mean().item()
    constant = torch.randn(6, dtype=F64)[:, None, None].expand(2, 6, 4, 5)
    assert trained(torch.zeros_like(mixed), teacher, 20) == pytest.approx(square)
    assert variance < 0.8 * square
    assert trained(constant, teacher) >= variance * (1 - 1e-9)
    assert trained(mixed, teacher) < 0.5 * variance


def test_no_layer_can_make_a_constant():
    query = TeacherQuery(6, 4)
    assert [name for name, _ in query.named_parameters()] == ["query.weight", "value.weight"]


def test_a_fresh_module_pulls_softly_and_attends_to_many():
    """Products of unit features start with a deviation of about 1, answers near zero."""
    torch.manual_seed(0)
    query = TeacherQuery(64, 256)
    student, teacher = torch.randn(1, 64, 8, 8), torch.randn(1, 256, 8, 8)
    nodes = query.norm(student.flatten(2).mT)
    products = query.query(nodes) @ teacher.flatten(2)
    assert 0.5 < products.std() < 2
    answer = query(student, teacher, torch.ones(1, 8, 8, dtype=torch.bool))
    assert answer.square().mean() < 1e-3


def test_converted_weight_acts_as_the_peer(maps):
    """With `scale: none` of raw features, over all positions: F.mse_loss of the attention."""
    student, teacher, mask = maps
    method = GKD(GKD.Config(scale="none"))
    taps = {"stage5": TapInfo(3, 32)}, {"stage5": TapInfo(5, 32)}
    method.build(BuildContext(*taps, 2))
    method.double()
    inside = torch.ones_like(mask)
    batch = Batch(torch.zeros(3, 3, 3, 4), None, inside, torch.arange(3))
    outputs = (Outputs(x[:, :2], {"stage5": x}) for x in (student, teacher))
    ours = method.loss(*outputs, batch, Context(batch))["stage5"].value
    (query,) = method.queries
    nodes = torch.nn.functional.layer_norm(student.flatten(2).mT, (3,))
    attention = (query.query(nodes) @ teacher.flatten(2)).softmax(-1)
    theirs = torch.nn.functional.mse_loss(attention @ query.value(nodes), teacher.flatten(2).mT)
    torch.testing.assert_close(GKD.conversions["GKD"].at() * ours, theirs)


def test_it_keeps_the_promises():
    check_method(GKD)


def test_large_maps_are_averaged_over_valid_positions():
    draw = torch.Generator().manual_seed(8)
    student, teacher = torch.randn(2, 2, 3, 4, 4, generator=draw, dtype=torch.float64)
    mask = torch.rand(2, 4, 4, generator=draw) > 0.4
    mask[0, :2, :2] = False  # a window without any
    windows = mask.view(2, 1, 2, 2, 2, 2)
    count = windows.sum(dim=(3, 5))
    pooled = [
        (one * mask[:, None]).view(2, 3, 2, 2, 2, 2).sum(dim=(3, 5)) / count.clamp(min=1)
        for one in (student, teacher)
    ]
    query = TeacherQuery(3, 3).double()
    found = gkd_loss(student, teacher, query=query, mask=mask, positions=4)
    expected = gkd_loss(*pooled, query=query, mask=count[:, 0] > 0)
    torch.testing.assert_close(found, expected)
    assert not torch.isclose(found, gkd_loss(student, teacher, query=query, mask=mask))
