import math

import pytest
import torch
import torch.nn.functional as F

from segkd.methods.base import Context
from segkd.methods.kd import kd_loss
from segkd.methods.wsld import WSLD, wsld_loss
from segkd.structures import Batch, Outputs


def softmax(logits, temperature):
    powers = [math.exp(z / temperature) for z in logits]
    return [power / sum(powers) for power in powers]


def reference(student, teacher, labels, mask, temperature):
    """The equation, pixel by pixel; void pixels have v = 1."""
    values = []
    for b, y, x in torch.cartesian_prod(*map(torch.arange, labels.shape)).tolist():
        if not mask[b, y, x]:
            continue
        label, z_s, z_t = labels[b, y, x].item(), student[b, :, y, x], teacher[b, :, y, x]
        v = 1.0
        if 0 <= label < student.shape[1]:
            ce_s, ce_t = (-math.log(softmax(z.tolist(), 1)[label]) for z in (z_s, z_t))
            v = 1 - math.exp(-ce_s / ce_t)
        p_s, p_t = softmax(z_s.tolist(), temperature), softmax(z_t.tolist(), temperature)
        values.append(v * sum(t * math.log(t / s) for s, t in zip(p_s, p_t, strict=True)))
    return temperature**2 * sum(values) / len(values)


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(7)
    student, teacher = 2 * torch.randn(2, 2, 4, 3, 5, generator=draw, dtype=torch.float64)
    labels = torch.randint(4, (2, 3, 5), generator=draw)
    labels[0, 0, 0], labels[1, 2, 3] = 255, -100
    mask = torch.rand(2, 3, 5, generator=draw) > 0.3
    mask[0, 0, 0] = mask[1, 2, 3] = True
    return student.requires_grad_(), teacher, labels, mask


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_equals_the_equation(maps, temperature):
    student, teacher, labels, mask = maps
    value = wsld_loss(student, teacher, labels=labels, mask=mask, temperature=temperature)
    expected = reference(student.detach(), teacher, labels, mask, temperature)
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_gradient_is_that_of_a_constant_weight(maps):
    student, teacher, labels, mask = maps
    logits, chosen = student.detach(), F.one_hot(labels.clamp(0, 3), 4).movedim(-1, 1)
    ce_s, ce_t = (-(z.log_softmax(1) * chosen).sum(1) for z in (logits, teacher))
    v = (1 - (-ce_s / ce_t).exp()).masked_fill((labels < 0) | (labels > 3), 1) * mask
    kl = F.kl_div((student / 2).log_softmax(1), (teacher / 2).softmax(1), reduction="none").sum(1)
    (expected,) = torch.autograd.grad(4 * (v * kl).sum() / mask.sum(), student)
    (found,) = torch.autograd.grad(wsld_loss(student, teacher, labels=labels, mask=mask), student)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


def test_gradient_is_right_where_the_weight_is_held(maps, monkeypatch):
    student, teacher, labels, mask = maps
    held = torch.rand_like(teacher[:, 0])
    monkeypatch.setattr("segkd.methods.wsld._cross_entropy", lambda logits, target: held)
    assert torch.autograd.gradcheck(
        lambda z: wsld_loss(z, teacher, labels=labels, mask=mask), student
    )


def test_without_a_mask_void_pixels_are_left_out(maps):
    student, teacher, labels, _ = maps
    labelled = (labels >= 0) & (labels < 4)
    value = wsld_loss(student, teacher, labels=labels)
    assert value == wsld_loss(student, teacher, labels=labels, mask=labelled)
    assert value != wsld_loss(student, teacher, labels=labels, mask=torch.ones_like(labelled))


def test_void_pixels_alone_are_kd(maps):
    student, teacher, labels, mask = maps
    void = torch.full_like(labels, 255)
    value = wsld_loss(student, teacher, labels=void, mask=mask)
    torch.testing.assert_close(value, kd_loss(student, teacher, mask=mask, temperature=2.0))


@pytest.mark.parametrize("mask, pixels", [("valid", 12), ("not_padding", 16)])
def test_entry_chooses_whether_void_pixels_join(mask, pixels):
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    labels[:, 0] = 255
    batch = Batch(torch.zeros(1, 3, 4, 4), labels, labels >= 0, torch.arange(1))
    method = WSLD(WSLD.Config(mask=mask, temperature=3.0))
    outputs = Outputs(torch.randn(1, 3, 4, 4)), Outputs(torch.randn(1, 3, 4, 4))
    term = method.loss(*outputs, batch, Context(batch, mask=mask))["wsld"]
    chosen = batch.valid if mask == "valid" else batch.not_padding
    logits = (side.logits for side in outputs)
    assert term.value == wsld_loss(*logits, labels=labels, mask=chosen, temperature=3.0)
    assert term.count == pixels


def test_log_probabilities_teach_the_same(maps):
    student, teacher, labels, mask = maps
    torch.testing.assert_close(
        wsld_loss(student, teacher.log_softmax(1), labels=labels, mask=mask),
        wsld_loss(student, teacher, labels=labels, mask=mask),
    )


def one_pixel(student, teacher, label=0):
    student, teacher = (torch.tensor(z).view(1, -1, 1, 1) for z in (student, teacher))
    student.requires_grad_()
    value = wsld_loss(student, teacher, labels=torch.full((1, 1, 1), label), temperature=1.0)
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all()
    return value.item(), kd_loss(student, teacher).item()


def test_a_teacher_without_doubt_has_the_full_weight():
    value, kd = one_pixel([0.0, 1.0, 2.0], [1e4, 0.0, 0.0])
    assert value == pytest.approx(kd)


def test_a_student_without_doubt_has_no_weight():
    value, kd = one_pixel([1e4, 0.0, 0.0], [1.0, 0.0, 0.0])
    assert value == 0 < kd


def test_both_without_doubt_are_finite():
    assert one_pixel([1e4, 0.0, 0.0], [1e4, 0.0, 0.0]) == (0, 0)


def test_small_cross_entropies_keep_their_ratio_in_float32():
    """At −log p = 3e-7 and 6e-7 float32's log_softmax has one or two digits left."""
    value, kd = one_pixel([15.0, 0.0], [14.3, 0.0])
    ce_s, ce_t = math.log1p(math.exp(-15.0)), math.log1p(math.exp(-14.3)) + 1e-7
    assert value / kd == pytest.approx(1 - math.exp(-ce_s / ce_t), rel=1e-3)


def peer(student, teacher, labels, temperature):
    """Soft cross-entropy with the weight of one-hot labels; without its constant part."""
    chosen = F.one_hot(labels, student.shape[1]).movedim(-1, 1)
    ce_s, ce_t = (-(z.detach().log_softmax(1) * chosen).sum(1) for z in (student, teacher))
    v = 1 - torch.exp(-(ce_s / (ce_t + 1e-7)).clamp(min=0))
    p_t = (teacher / temperature).softmax(1)
    soft = -(p_t * (student / temperature).log_softmax(1)).sum(1)
    entropy = -(p_t * p_t.log()).sum(1)
    return temperature**2 * ((v * soft).mean() - (v * entropy).mean())


def test_every_conversion_is_checked():
    assert WSLD.conversions.keys() == {"WSLD, mmrazor"}


def test_converted_weight_acts_as_the_peers(maps):
    student, teacher, labels, _ = maps
    labels = labels.clamp(0, 3)
    theirs = 2.5 * peer(student, teacher, labels, 2.0)
    ours = wsld_loss(student, teacher, labels=labels)
    torch.testing.assert_close(theirs, WSLD.conversions["WSLD, mmrazor"].at() * ours)
    assert WSLD.paper_weight == 2.5 and WSLD.Config().temperature == 2


def test_parity_adds_the_weighted_entropy_and_has_the_same_gradient(maps):
    student, teacher, labels, mask = maps
    ours = wsld_loss(student, teacher, labels=labels, mask=mask)
    (gradient,) = torch.autograd.grad(ours, student)
    public = wsld_loss(student, teacher, labels=labels, mask=mask, parity=True)
    torch.testing.assert_close(torch.autograd.grad(public, student)[0], gradient)
    values = []
    for b, y, x in mask.nonzero().tolist():
        label, z_s, z_t = labels[b, y, x].item(), student[b, :, y, x], teacher[b, :, y, x]
        v = 1.0
        if 0 <= label < 4:
            ce_s, ce_t = (-math.log(softmax(z.tolist(), 1)[label]) for z in (z_s, z_t))
            v = 1 - math.exp(-ce_s / ce_t)
        p_s, p_t = softmax(z_s.tolist(), 2.0), softmax(z_t.tolist(), 2.0)
        values.append(-v * sum(t * math.log(s) for s, t in zip(p_s, p_t, strict=True)))
    assert public.item() == pytest.approx(4 * sum(values) / len(values), rel=1e-5)
