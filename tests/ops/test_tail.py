"""The tail of top-k is one bucket: value and gradient of its divergence, at any temperature."""

import pytest
import torch

from segkd.methods.dkd import dkd_loss
from segkd.methods.kd import kd_loss
from segkd.models.box_outputs import outputs_of, with_tail
from segkd.ops.tail import spread_tail
from segkd.structures import Outputs

K, TOP = 6, 2


def split(teacher):
    """Named probabilities and the rest, spread evenly, of logits (B, K, h, w)."""
    p = teacher.softmax(1)
    kept = torch.zeros_like(p, dtype=torch.bool).scatter(1, p.topk(TOP, dim=1).indices, True)
    listed = p * kept
    rest = (1 - listed.sum(1, keepdim=True)) / (K - TOP)
    return listed, torch.where(kept, 0, rest), kept


def bucket(student, teacher, kept, temperature):
    """Σ over pixels, with loops: the named classes one by one, all others together."""
    p = teacher.softmax(1)
    total = 0.0
    for b, i, j in torch.ones_like(p[:, 0]).nonzero().tolist():
        q = student[b, :, i, j].softmax(0)
        named = kept[b, :, i, j]
        # At T the tail of the teacher is softened in the proportions of the student's.
        tail = (1 - p[b, named, i, j].sum()) * q[~named].detach() / q[~named].detach().sum()
        whole = p[b, :, i, j].clone()
        whole[~named] = tail
        soft_t = (whole.log() / temperature).softmax(0)
        soft_s = (student[b, :, i, j] / temperature).softmax(0)
        for k in named.nonzero().flatten().tolist():
            total = total + soft_t[k] * (soft_t[k] / soft_s[k]).log()
        rest_t, rest_s = soft_t[~named].sum(), soft_s[~named].sum()
        total = total + rest_t * (rest_t / rest_s).log()
    return temperature**2 * total / p[:, 0].numel()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_kd_has_the_value_and_the_gradient_of_the_bucket(temperature):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 2, K, 2, 3, dtype=torch.float64)
    student.requires_grad_()
    listed, tail, kept = split(teacher)
    given = Outputs(outputs_of(listed, tail).logits, kind="log_prob", tail=tail)
    full = with_tail(given, Outputs(student))
    assert full.tail is None and not full.logits.requires_grad
    value = kd_loss(student, full.logits, temperature=temperature)
    expected = bucket(student, teacher, kept, temperature)
    torch.testing.assert_close(value, expected)
    found = torch.autograd.grad(value, student)
    torch.testing.assert_close(found, torch.autograd.grad(expected, student))


def test_other_ways_to_fill_the_tail_are_biased():
    """A student that equals the teacher is at rest with the bucket, but not with these."""
    torch.manual_seed(0)
    teacher = torch.randn(2, K, 2, 3, dtype=torch.float64)
    student = teacher.clone().requires_grad_()
    listed, tail, _ = split(teacher)

    def pull(shares):
        return torch.autograd.grad(kd_loss(student, shares.log()), student)[0].abs().max()

    right = spread_tail(listed + tail, tail, student.detach())
    torch.testing.assert_close(right, teacher.softmax(1))
    assert pull(right) < 1e-12
    assert pull(listed + tail) > 1e-3, "spread evenly"
    alone = (listed / listed.sum(1, keepdim=True)).clamp_min(1e-8)
    assert pull(alone) > 1e-3, "left out"


def test_a_student_that_is_sure_of_a_named_class():
    listed = torch.tensor([0.7, 0, 0, 0]).view(1, 4, 1, 1)
    tail = torch.tensor([0, 0.1, 0.1, 0.1]).view(1, 4, 1, 1)
    sure = torch.tensor([1e4, 0, 0, 0]).view(1, 4, 1, 1)
    shares = spread_tail(listed + tail, tail, sure)
    torch.testing.assert_close(shares.flatten(), torch.tensor([0.7, 0.1, 0.1, 0.1]))
    none = spread_tail(listed, torch.zeros_like(tail), sure)
    torch.testing.assert_close(none, listed)


def test_other_sizes_and_methods():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, K, 8, 8), torch.randn(2, K, 4, 4)
    listed, tail, _ = split(teacher)
    given = outputs_of(listed, tail)
    full = with_tail(given, Outputs(student))
    assert full.logits.shape == (2, K, 4, 4)
    torch.testing.assert_close(full.logits.exp().sum(1), torch.ones(2, 4, 4))
    labels = torch.randint(0, K, (2, 4, 4))
    small = torch.nn.functional.avg_pool2d(student, 2)
    assert torch.isfinite(dkd_loss(small, full.logits, labels=labels))
    plain = Outputs(teacher)
    assert with_tail(plain, Outputs(student)) is plain
