import math

import pytest
import torch

from segkd.methods.base import BuildContext, Context, TapInfo
from segkd.methods.heteroakd import HeteroAKD, heteroakd_loss
from segkd.methods.kd import kd_loss
from segkd.structures import Batch, Outputs
from segkd.testing import check_method

F64 = torch.float64


def softmax(values):
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def one_vs_rest(score, is_class):
    chance = 1 / (1 + math.exp(-score))
    return -math.log(chance if is_class else 1 - chance)


def of_a_position(student, teacher, label, temperature, unbiased):
    """Eq. 5 to 10 for one position, class by class."""
    classes = range(len(student))
    own = [one_vs_rest(student[c], c == label) for c in classes]
    other = [one_vs_rest(teacher[c], c == label) for c in classes]
    trust = [own[c] / (own[c] + other[c]) for c in classes]
    mixed = [trust[c] * teacher[c] + (1 - trust[c]) * student[c] for c in classes]
    gain = [max(0.0, own[c] - one_vs_rest(mixed[c], c == label)) for c in classes]
    weight = softmax([own[c] + gain[c] for c in classes])
    target, found = (softmax([z / temperature for z in scores]) for scores in (mixed, student))
    if unbiased:
        parts = [p * math.log(p / q) - p + q for p, q in zip(target, found, strict=True)]
    else:
        parts = [-p * math.log(q) for p, q in zip(target, found, strict=True)]
    each = sum(w * part for w, part in zip(weight, parts, strict=True))
    return temperature**2 * len(student) * each


def reference(student, teacher, labels, mask, temperature=1.0, unbiased=True):
    found = [
        of_a_position(
            student[b, :, y, x].tolist(),
            teacher[b, :, y, x].tolist(),
            labels[b, y, x].item(),
            temperature,
            unbiased,
        )
        for b, y, x in mask.nonzero().tolist()
        if 0 <= labels[b, y, x] < student.shape[1]
    ]
    return sum(found) / len(found)


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(11)
    student, teacher = 2 * torch.randn(2, 2, 5, 3, 4, generator=draw, dtype=F64)
    labels = torch.randint(5, (2, 3, 4), generator=draw)
    labels[0, 0], labels[1, 2, 1] = 255, -100
    mask = torch.rand(2, 3, 4, generator=draw) > 0.3
    return student.requires_grad_(), teacher.requires_grad_(), labels, mask


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_equals_the_equations(maps, temperature, unbiased):
    student, teacher, labels, mask = maps
    keys = {"temperature": temperature, "unbiased": unbiased}
    found = heteroakd_loss(student, teacher, labels=labels, mask=mask, **keys)
    expected = reference(student.detach(), teacher.detach(), labels, mask, **keys)
    assert found.item() == pytest.approx(expected, rel=1e-4)  # but for a millionth beside H


def test_gradient_is_that_of_a_constant_target_and_none_goes_to_the_teacher(maps):
    student, teacher, labels, mask = maps
    one = (slice(1, 2), slice(None), slice(0, 1), slice(0, 1))
    own, other, label = student.detach()[one], teacher.detach()[one], labels[1:, :1, :1]
    own.requires_grad_()
    heteroakd_loss(own, other, labels=label).backward()
    # Of Σ w (p log(p/q) − p + q) with q = softmax(z): w (q − p) through the softmax's Jacobian.
    p, q, w = pieces(own.detach().flatten().tolist(), other.flatten().tolist(), label.item())
    pull = [w[c] * (q[c] - p[c]) for c in range(5)]
    slope = [pull[c] - q[c] * sum(pull) for c in range(5)]
    torch.testing.assert_close(
        own.grad.flatten(), torch.tensor(slope, dtype=F64), rtol=1e-4, atol=0
    )
    heteroakd_loss(student, teacher, labels=labels, mask=mask).backward()
    assert teacher.grad is None
    assert not student.grad.masked_fill(mask.unsqueeze(1), 0).any()


def pieces(student, teacher, label):
    own = [one_vs_rest(z, c == label) for c, z in enumerate(student)]
    other = [one_vs_rest(z, c == label) for c, z in enumerate(teacher)]
    trust = [a / (a + b) for a, b in zip(own, other, strict=True)]
    mixed = [m * t + (1 - m) * s for m, t, s in zip(trust, teacher, student, strict=True)]
    gain = [
        max(0.0, a - one_vs_rest(z, c == label))
        for c, (a, z) in enumerate(zip(own, mixed, strict=True))
    ]
    weight = softmax([a + g for a, g in zip(own, gain, strict=True)])
    return softmax(mixed), softmax(student), [5 * w for w in weight]


def scores(label, sure):
    """Of one position with 4 classes, from networks that are right (sure > 0) or wrong."""
    values = torch.full((1, 4, 1, 1), -abs(sure), dtype=F64)
    values[0, label] = abs(sure)
    return values


def test_a_teacher_that_is_wrong_does_not_teach_one_that_is_right():
    labels = torch.zeros(1, 1, 1, dtype=torch.int64)
    right, wrong = scores(0, 6.0), scores(2, 6.0)
    led_astray = heteroakd_loss(right, wrong, labels=labels).item()
    corrected = heteroakd_loss(wrong, right, labels=labels).item()
    assert led_astray < 1e-4 and corrected > 1
    assert kd_loss(right, wrong) == pytest.approx(kd_loss(wrong, right).item())


def test_where_all_classes_weigh_alike_it_is_kd_from_the_mixture():
    labels = torch.zeros(1, 1, 1, dtype=torch.int64)
    student, teacher = scores(0, 1.5), -scores(0, 0.5)
    own, other = one_vs_rest(1.5, True), one_vs_rest(-0.5, True)  # of each of the classes
    mixed = (own * teacher + other * student) / (own + other)
    found = heteroakd_loss(student, teacher, labels=labels)
    assert found.item() == pytest.approx(kd_loss(student, mixed).item(), rel=1e-4)
    assert found > 1e-3


def test_a_perfect_student_stays_as_it_is_and_is_drawn_away_by_the_papers_form(maps):
    student, _, labels, mask = maps
    for unbiased, drawn in ((True, False), (False, True)):
        value = heteroakd_loss(student, student, labels=labels, mask=mask, unbiased=unbiased)
        (gradient,) = torch.autograd.grad(value, student)
        assert bool((gradient.abs() > 1e-6).any()) == drawn


def built(**keys):
    torch.manual_seed(3)
    method = HeteroAKD(HeteroAKD.Config(scale="none", **keys)).double()
    taps = {"stage5": TapInfo(6, 8)}
    method.build(BuildContext(taps, {"stage5": TapInfo(9, 4)}, 5))
    return method.double()


def known(maps):
    return maps[3] & (maps[2] >= 0) & (maps[2] < 5)


@pytest.fixture
def case(maps):
    draw = torch.Generator().manual_seed(5)
    own = torch.randn(2, 6, 3, 4, generator=draw, dtype=F64, requires_grad=True)
    other = torch.randn(2, 9, 6, 8, generator=draw, dtype=F64)
    labels = maps[2].masked_fill(maps[2] < 0, 255)
    wide = [x.repeat_interleave(4, 1).repeat_interleave(4, 2) for x in (labels, maps[3])]
    batch = Batch(torch.zeros(2, 3, 12, 16), *wide, torch.arange(2))
    outputs = Outputs(torch.zeros(2, 5, 3, 4), {"stage5": own})
    return outputs, Outputs(torch.zeros(2, 5, 6, 8), {"stage5": other}), batch


def test_the_entry_is_the_function_of_projected_features(case, maps):
    student, teacher, batch = case
    method = built(temperature=2.0)
    for parameter in method.parameters():
        torch.nn.init.normal_(parameter)
    (term,) = method.loss(student, teacher, batch, Context(batch)).values()
    pooled = torch.nn.functional.avg_pool2d(teacher.features["stage5"], 2)
    own = method.student_projections[0](student.features["stage5"])
    other = method.teacher_projections[0](pooled)
    expected = reference(own.detach(), other.detach(), maps[2], maps[3], 2.0)
    assert term.value.item() == pytest.approx(expected, rel=1e-4)
    assert term.count == known(maps).sum()


def test_projections_learn_from_labels_alone_and_tell_classes_apart(case):
    student, teacher, batch = case
    method = built(projection_lr=0.05)
    optimizer = method.inner_optimizer(method.inner_parameters())
    assert method.trained_parameters() == []
    found = []
    for _ in range(200):
        optimizer.zero_grad()
        (term,) = method.inner_loss(student.detach(), teacher, batch, Context(batch)).values()
        term.value.backward()
        optimizer.step()
        found.append(term.value.item())
    chance = -(math.log(1 / 5) + 4 * math.log(4 / 5))
    assert found[0] == pytest.approx(2 * chance, rel=0.01)  # of both, which begin at one in five
    assert found[-1] < 0.4 * found[0]


def test_it_keeps_the_promises():
    check_method(HeteroAKD)
