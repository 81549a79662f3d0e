import math

import pytest
import torch
import torch.nn.functional as F

from segkd.ops import similarity_kl as module
from segkd.ops.blocks import BlockSize
from segkd.ops.similarity_kl import similarity_kl, unit_nodes


def by_hand(student, teacher, student_keys, teacher_keys, weight, keep, temperature):
    """Σ_a w_a Σ_j Σ_n p_t log(p_t / p_s), anchor by anchor and image by image."""
    total = 0.0
    for anchor, (s, t) in enumerate(zip(student, teacher, strict=True)):
        for image, kept in enumerate(keep):
            if not kept.any():
                continue
            exp_s = [math.exp(float(s @ k) / temperature) for k in student_keys[image][kept]]
            exp_t = [math.exp(float(t @ k) / temperature) for k in teacher_keys[image][kept]]
            for e_s, e_t in zip(exp_s, exp_t, strict=True):
                p_s, p_t = e_s / sum(exp_s), e_t / sum(exp_t)
                total += float(weight[anchor]) * p_t * math.log(p_t / p_s)
    return total


def plain(student, teacher, student_keys, teacher_keys, weight, keep, temperature):
    """The same with whole maps and autograd."""
    low = torch.where(keep, 0.0, -1e30)
    log_s, log_t = (
        (torch.einsum("ac,jnc->ajn", anchors, keys) / temperature + low).log_softmax(2)
        for anchors, keys in ((student, student_keys), (teacher, teacher_keys))
    )
    rows = F.kl_div(log_s, log_t, log_target=True, reduction="none").sum(2)
    return (rows * weight[:, None] * keep.any(1)).sum()


def inputs(dtype=torch.float64, anchors=7, images=3, keys=5):
    draw = torch.Generator().manual_seed(1)
    shapes = [(anchors, 4), (anchors, 6), (images, keys, 4), (images, keys, 6)]
    nodes = [F.normalize(torch.randn(s, generator=draw, dtype=dtype), dim=-1) for s in shapes]
    keep = torch.rand(images, keys, generator=draw) > 0.3
    keep[1] = False
    weight = torch.rand(anchors, generator=draw, dtype=dtype)
    weight[2] = 0
    nodes[0].requires_grad_()
    nodes[2].requires_grad_()
    return nodes, weight, keep


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_equals_the_sum_by_hand(temperature):
    nodes, weight, keep = inputs()
    value = similarity_kl(*nodes, weight=weight, keep=keep, temperature=temperature)
    with torch.no_grad():
        expected = by_hand(*nodes, weight, keep, temperature)
    assert value.item() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("masked", [False, True])
def test_gradient_is_right(masked):
    nodes, weight, keep = inputs()
    options = {"weight": weight, "keep": keep} if masked else {}

    def loss(anchors, keys):
        return similarity_kl(anchors, nodes[1], keys, nodes[3], temperature=0.5, **options)

    assert torch.autograd.gradcheck(loss, (nodes[0], nodes[2]))


def test_gradient_of_anchors_that_are_their_own_keys():
    (_, _, keys, teacher_keys), *_ = inputs(keys=6)

    def loss(keys):
        anchors, targets = keys.flatten(0, 1), teacher_keys.flatten(0, 1)
        return similarity_kl(anchors, targets, keys, teacher_keys, temperature=0.5)

    assert torch.autograd.gradcheck(loss, keys)


def test_a_bank_without_gradient_serves_both_sides():
    (_, teacher, _, bank), weight, keep = inputs()
    student = teacher.roll(1, dims=0).requires_grad_()
    value = similarity_kl(student, teacher, bank, bank, weight=weight, keep=keep)
    expected = plain(student, teacher, bank, bank, weight, keep, 0.1)
    torch.testing.assert_close(value, expected)
    found, wanted = (torch.autograd.grad(x, student)[0] for x in (value, expected))
    torch.testing.assert_close(found, wanted)


def test_float32_equals_the_plain_form():
    nodes, weight, keep = inputs(torch.float32, anchors=300, images=3, keys=200)
    value = similarity_kl(*nodes, weight=weight, keep=keep)
    expected = plain(*nodes, weight, keep, 0.1)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)
    leaves = nodes[0], nodes[2]
    found, wanted = (torch.autograd.grad(x, leaves) for x in (value, expected))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())


@pytest.mark.parametrize("budget", [1, 12, 31, 70])
def test_working_in_blocks_changes_nothing(budget, monkeypatch):
    nodes, weight, keep = inputs()
    whole = similarity_kl(*nodes, weight=weight, keep=keep)
    gradients = torch.autograd.grad(whole, (nodes[0], nodes[2]))
    monkeypatch.setattr(module, "_BLOCK", BlockSize(budget, budget))
    monkeypatch.setattr(module, "_ROWS", 2)
    assert len(list(module._blocks(7, 3, 5, "cpu"))) > 1
    blocks = similarity_kl(*nodes, weight=weight, keep=keep)
    torch.testing.assert_close(blocks, whole)
    torch.testing.assert_close(torch.autograd.grad(blocks, (nodes[0], nodes[2])), gradients)


@pytest.mark.parametrize("budget", [1, 40, 1000])
@pytest.mark.parametrize("size", [(1, 1, 1), (7, 3, 5), (300, 4, 9), (2, 5, 0), (0, 2, 3)])
def test_blocks_cover_every_pair_once(size, budget, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", BlockSize(budget, budget))
    seen = torch.zeros(size[:2], dtype=torch.int64)
    areas = []
    for rows, images in module._blocks(*size, "cpu"):
        seen[rows, images] += 1
        areas.append(seen[rows, images].numel())
    assert (seen == 1).all() and all(area <= areas[0] for area in areas)


def test_only_gradients_of_the_size_of_the_features_are_kept():
    nodes, weight, keep = inputs()
    value = similarity_kl(*nodes, weight=weight, keep=keep)
    saved = value.grad_fn.saved_tensors
    assert [x.shape for x in saved] == [(7, 4), (3, 5, 4)]
    nodes[2] = nodes[2].detach()
    value = similarity_kl(*nodes, weight=weight, keep=keep)
    saved = value.grad_fn.saved_tensors
    assert saved[0].shape == (7, 4) and saved[1] is None


def test_teacher_gets_no_gradient():
    nodes, _, _ = inputs()
    nodes[1].requires_grad_()
    nodes[3].requires_grad_()
    similarity_kl(*nodes).backward()
    assert nodes[1].grad is None and nodes[3].grad is None


@pytest.mark.parametrize("scale", [1e3, 1e18])
def test_saturated_similarities_are_finite(scale):
    nodes, _, keep = inputs(torch.float32)
    student, keys = (x.detach().mul(scale).requires_grad_() for x in (nodes[0], nodes[2]))
    value = similarity_kl(student, nodes[1], keys, nodes[3], keep=keep)
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all() and keys.grad.isfinite().all()


def test_nothing_kept_gives_a_zero_with_a_graph():
    nodes, _, keep = inputs()
    value = similarity_kl(*nodes, keep=torch.zeros_like(keep))
    value.backward()
    assert value == 0 and not nodes[0].grad.any() and not nodes[2].grad.any()


def test_half_precision_is_computed_in_float32():
    nodes, _, keep = inputs(torch.float32, anchors=40, keys=30)
    nodes = [x.detach().bfloat16() for x in nodes]
    nodes[0].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = similarity_kl(*nodes, keep=keep)
    assert value.dtype is torch.float32
    assert value == similarity_kl(*(x.float() for x in nodes), keep=keep)
    value.backward()
    assert nodes[0].grad.dtype is torch.bfloat16


def test_unit_nodes_have_length_one_or_no_direction():
    maps = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    maps[0, :, 1, 2], maps[0, :, 1, 3] = 0, 1e-9
    maps.requires_grad_()
    nodes = unit_nodes(maps)
    assert nodes.shape == (2, 20, 3) and nodes.is_contiguous()
    lengths = nodes.norm(dim=2)
    assert (lengths == 0).nonzero().tolist() == [[0, 7], [0, 8]]
    torch.testing.assert_close(lengths[lengths > 0], torch.ones(38, dtype=torch.float64))
    torch.testing.assert_close(nodes[1, 6], maps[1, :, 1, 1] / maps[1, :, 1, 1].norm())
    nodes.square().sum().add(nodes.sum()).backward()
    assert maps.grad.isfinite().all() and not maps.grad[0, :, 1, 2:4].any()


def test_shapes_that_do_not_belong_together_are_refused():
    nodes, _, _ = inputs()
    with pytest.raises(ValueError, match=r"got \(7, 4\), \(7, 6\) and \(3, 5, 6\), \(3, 5, 4\)"):
        similarity_kl(nodes[0], nodes[1], nodes[3], nodes[2])
