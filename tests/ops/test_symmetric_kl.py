import math

import pytest
import torch
import torch.nn.functional as F

from segkd.ops import symmetric_kl as module
from segkd.ops.blocks import BlockSize
from segkd.ops.similarity_kl import mean_similarity_kl, similarity_kl, unit
from segkd.ops.symmetric_kl import is_worthwhile, symmetric_kl


def inputs(images=3, nodes=7, dtype=torch.float64):
    draw = torch.Generator().manual_seed(3)
    student, teacher = (
        F.normalize(torch.randn(images, nodes, c, generator=draw, dtype=dtype), dim=2)
        for c in (4, 6)
    )
    keep = torch.rand(images, nodes, generator=draw) > 0.3
    return student.requires_grad_(), teacher, keep


def by_hand(student, teacher, keep, temperature, across):
    """Σ over anchors and images of Σ_n p_t log(p_t / p_s), node by node."""
    total, student = 0.0, student.detach()
    for i in range(len(keep)):
        for j in range(len(keep)) if across else [i]:
            for anchor in keep[i].nonzero()[:, 0]:
                exponents = [
                    [math.exp(float(x[i, anchor] @ key) / temperature) for key in x[j][keep[j]]]
                    for x in (student, teacher)
                ]
                own, other = ([e / sum(part) for e in part] for part in exponents)
                total += sum(t * math.log(t / s) for s, t in zip(own, other, strict=True))
    return total


def streamed(student, teacher, keep, temperature):
    weight = keep.flatten().to(student.dtype)
    anchors = student.flatten(0, 1), teacher.flatten(0, 1)
    return similarity_kl(
        *anchors, student, teacher, weight=weight, keep=keep, temperature=temperature
    )


@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_equals_the_sum_by_hand(temperature, across):
    nodes = inputs()
    value = symmetric_kl(*nodes, temperature, across=across)
    expected = by_hand(*nodes, temperature, across)
    assert value.item() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("across", [True, False])
def test_gradient_is_right(across):
    student, teacher, keep = inputs(nodes=5)
    assert torch.autograd.gradcheck(
        lambda x: symmetric_kl(x, teacher, keep, 0.5, across=across), student
    )


@pytest.mark.parametrize("kept", [1, 10**9], ids=["computed twice", "kept"])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_working_in_blocks_changes_nothing(rows, kept, monkeypatch):
    monkeypatch.setattr(module, "_KEPT", BlockSize(kept, kept))
    monkeypatch.setattr(module, "_BLOCK", BlockSize(1, 1))
    monkeypatch.setattr(module, "_ROWS", rows)
    student, teacher, keep = inputs()
    value, expected = symmetric_kl(student, teacher, keep, 0.1), streamed(*inputs(), 0.1)
    torch.testing.assert_close(value, expected)
    wanted = torch.autograd.grad(streamed(student, teacher, keep, 0.1), student)
    torch.testing.assert_close(torch.autograd.grad(value, student), wanted)


def test_float32_equals_the_streamed_form():
    student, teacher, keep = inputs(nodes=300, dtype=torch.float32)
    for temperature in (1 / 60, 0.1):
        value, expected = (f(student, teacher, keep, temperature) for f in (symmetric_kl, streamed))
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
        found, wanted = (torch.autograd.grad(x, student)[0] for x in (value, expected))
        close = {"rtol": 1e-5, "atol": 1e-5 * wanted.abs().max().item()}
        torch.testing.assert_close(found, wanted, **close)


def test_images_and_nodes_without_anything_add_nothing():
    student, teacher, keep = inputs()
    keep[1] = False
    keep[2] = torch.arange(7) == 4  # its only key: a divergence of 0
    value = symmetric_kl(student, teacher, keep, 0.1)
    (gradient,) = torch.autograd.grad(value, student)
    assert value.item() == pytest.approx(by_hand(*inputs()[:2], keep, 0.1, True), rel=1e-11)
    assert gradient.isfinite().all() and not gradient[~keep].any()
    nothing = symmetric_kl(student, teacher, torch.zeros_like(keep), 0.1)
    (gradient,) = torch.autograd.grad(nothing, student)
    assert nothing == 0 and not gradient.any()


def test_nodes_that_are_not_kept_change_nothing():
    student, teacher, keep = inputs()
    value = symmetric_kl(student, teacher, keep, 0.1)
    others = (torch.where(keep[:, :, None], x, 7.0) for x in (student, teacher))
    assert symmetric_kl(*others, keep, 0.1) == value


def test_only_the_gradient_is_kept_and_the_teacher_gets_none():
    student, teacher, keep = inputs()
    teacher.requires_grad_()
    value = symmetric_kl(student, teacher, keep, 0.1)
    assert [x.shape for x in value.grad_fn.saved_tensors] == [student.shape]
    value.backward()
    assert teacher.grad is None


def test_half_precision_is_computed_in_float32():
    student, teacher, keep = inputs(dtype=torch.float32)
    student, teacher = student.detach().bfloat16().requires_grad_(), teacher.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value = symmetric_kl(student, teacher, keep, 0.1)
    assert value.dtype is torch.float32
    assert value == symmetric_kl(student.float(), teacher.float(), keep, 0.1)
    value.backward()
    assert student.grad.dtype is torch.bfloat16


def test_the_mean_takes_it_where_anchors_are_the_keys(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "segkd.ops.similarity_kl.symmetric_kl", lambda *x: calls.append(x) or symmetric_kl(*x)
    )
    student, teacher, keep = inputs(nodes=256)
    nodes = unit(student), unit(teacher), keep
    copies = tuple(x.clone() for x in nodes)
    found, expected = (mean_similarity_kl(*nodes, *keys, 0.1) for keys in (nodes, copies))
    assert len(calls) == 1
    torch.testing.assert_close(found, expected)
    mean_similarity_kl(*nodes, *nodes, 1 / 61)
    few = tuple(x[:, :255] for x in nodes)
    mean_similarity_kl(*few, *few, 0.1)
    assert len(calls) == 1
    assert is_worthwhile(256, 0.1) and not is_worthwhile(255, 0.1)
