import math

import pytest
import torch

from segkd.ops.blocks import BlockSize
from segkd.ops.softmax_kl import mean_softmax_kl, pixel_kl, softmax_kl


def by_hand(student, teacher, weight, keep, temperature):
    """Σ_r weight_r T² Σ_i p_t log(p_t / p_s) over the kept entries of each row of (R, D)."""
    total = 0.0
    for s, t, w, kept in zip(student, teacher, weight, keep, strict=True):
        s, t = s[kept] / temperature, t[kept] / temperature
        if not len(s):
            continue
        p_s, p_t = s.exp() / s.exp().sum(), t.exp() / t.exp().sum()
        for a, b in zip(p_s.tolist(), p_t.tolist(), strict=True):
            total += w * temperature**2 * b * math.log(b / a)
    return total


@pytest.fixture
def rows():
    draw = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, 6, 5, generator=draw, dtype=torch.float64)
    keep = torch.rand(6, 5, generator=draw) > 0.4
    keep[2] = False
    weight = torch.rand(6, 1, generator=draw, dtype=torch.float64)
    return student.requires_grad_(), teacher, weight, keep


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_equals_the_sum_by_hand(rows, temperature):
    student, teacher, weight, keep = rows
    value = softmax_kl(student, teacher, weight, dim=1, keep=keep, temperature=temperature)
    expected = by_hand(student.detach(), teacher, weight[:, 0].tolist(), keep, temperature)
    assert value.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_gradient_is_right(rows, masked):
    student, teacher, weight, keep = rows

    def loss(student):
        return softmax_kl(
            student, teacher, weight, dim=1, keep=keep if masked else None, temperature=3.0
        )

    assert torch.autograd.gradcheck(loss, student)


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("block", [1, 10, 25])
def test_working_in_blocks_changes_nothing(dim, block, monkeypatch):
    draw = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, 3, 4, 5, generator=draw, dtype=torch.float64)
    student.requires_grad_()
    weight = torch.rand(3, 1, 5 if dim == 1 else 1, generator=draw, dtype=torch.float64)
    keep = torch.rand(3, 1, 5, generator=draw) > 0.4
    whole = softmax_kl(student, teacher, weight, dim=dim, keep=keep)
    (gradient,) = torch.autograd.grad(whole, student)
    monkeypatch.setattr("segkd.ops.softmax_kl._BLOCK", BlockSize(block, block))
    blocks = softmax_kl(student, teacher, weight, dim=dim, keep=keep)
    torch.testing.assert_close(blocks, whole)
    torch.testing.assert_close(torch.autograd.grad(blocks, student)[0], gradient)


@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_saturated_logits_are_finite(scale):
    student = torch.tensor([[scale, 0.0, -scale], [0.0, 0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[-scale, 0.0, scale], [scale, -scale, 0.0]])
    keep = torch.tensor([[True, False, True], [True, True, True]])
    softmax_kl(student, teacher, torch.ones(2, 1), dim=1, keep=keep).backward()
    assert student.grad.isfinite().all()
    assert student.grad[0].tolist() == [1.0, 0.0, -1.0]


def test_saturated_value_is_exact():
    student = torch.tensor([[1e4, -1e4]], requires_grad=True)
    value = softmax_kl(student, -student.detach(), torch.ones(1, 1), dim=1)
    assert value.item() == 2e4


def test_channels_last_input_gives_a_channels_last_gradient():
    draw = torch.Generator().manual_seed(0)
    plain, teacher = torch.randn(2, 2, 4, 3, 5, generator=draw)
    last = plain.clone(memory_format=torch.channels_last).requires_grad_()
    plain.requires_grad_()
    for student in (plain, last):
        softmax_kl(student, teacher, torch.ones(()), dim=1).backward()
    torch.testing.assert_close(plain.grad, last.grad)
    assert last.grad.is_contiguous(memory_format=torch.channels_last)


def test_half_precision_is_computed_in_float32():
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 40, 19, generator=draw).bfloat16()
    student.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = softmax_kl(student, teacher, torch.ones(()), dim=1)
    expected = softmax_kl(student.float(), teacher.float(), torch.ones(()), dim=1)
    assert value.dtype is torch.float32 and value == expected
    value.backward()
    assert student.grad.dtype is torch.bfloat16


def test_one_tensor_is_kept_for_backward():
    student, teacher = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8)
    value = softmax_kl(student, teacher, torch.ones(4, 1), dim=1)
    assert [tensor.shape for tensor in value.grad_fn.saved_tensors] == [(4, 8)]


def test_teacher_gets_no_gradient():
    student, teacher = torch.randn(2, 4, 8, requires_grad=True).unbind()
    teacher = teacher.detach().requires_grad_()
    softmax_kl(student, teacher, torch.ones(()), dim=1).backward()
    assert teacher.grad is None


def test_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match=r"student has shape \(2, 1, 3\).*channel_adapter"):
        softmax_kl(torch.zeros(2, 1, 3), torch.zeros(2, 4, 3), torch.ones(()), dim=1)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_exact_log_probabilities(temperature):
    """0 · log 0 is 0, on both sides; the value is that of the remaining classes."""
    student = torch.tensor([[[0.3, -torch.inf], [0.1, 0.0]], [[1.0, 2.0], [0.5, -1.0]]])
    teacher = torch.tensor([[[0.0, -torch.inf], [-torch.inf, 0.0]], [[0.2, 0.1], [0.3, 0.4]]])
    student, teacher = student.double().requires_grad_(), teacher.double()
    value = softmax_kl(student, teacher, torch.ones(2, 1, 2), dim=1, temperature=temperature)
    value.backward()
    p_s = (student.detach() / temperature).softmax(1)
    p_t = (teacher / temperature).softmax(1)
    terms = torch.where(p_t > 0, p_t * (p_t / p_s).log(), 0.0)
    torch.testing.assert_close(value.detach(), temperature**2 * terms.sum())
    torch.testing.assert_close(student.grad, temperature * (p_s - p_t))


def test_rows_of_no_weight_may_hold_anything():
    student = torch.randn(2, 3, 4, dtype=torch.float64)
    teacher = torch.randn(2, 3, 4, dtype=torch.float64)
    weight = torch.ones(2, 1, 4, dtype=torch.float64)
    weight[:, :, 1] = 0

    def loss(fill):
        mine = student.clone()
        mine[:, :, 1] = fill
        mine.requires_grad_()
        value = softmax_kl(mine, teacher.masked_fill(weight == 0, fill), weight, dim=1)
        value.backward()
        return value.detach(), mine.grad

    wanted, gradient = loss(0.0)
    for bad in (torch.nan, torch.inf, -torch.inf):
        found, own = loss(bad)
        assert torch.equal(found, wanted) and torch.equal(own, gradient)


# -- means -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_excluded_entries_may_hold_anything(value):
    student, teacher = torch.randn(2, 2, 3, 5, generator=torch.Generator().manual_seed(4))
    keep = torch.tensor([True, False, True, True, False]).expand(2, 1, 5)
    expected = softmax_kl(
        student[..., keep[0, 0]], teacher[..., keep[0, 0]], torch.ones(2, 3, 1), dim=2
    )
    student, teacher = (x.masked_fill(~keep, value) for x in (student, teacher))
    student.requires_grad_()
    found = softmax_kl(student, teacher, torch.ones(2, 3, 1), dim=2, keep=keep)
    torch.testing.assert_close(found, expected)
    (slope,) = torch.autograd.grad(found, student)
    assert slope.isfinite().all() and not slope[..., ~keep[0, 0]].any()


def test_the_mean_is_the_sum_by_the_weights(rows):
    student, teacher, weight, keep = rows
    weight = weight[:, 0] / 10  # a sum below 1 is no reason to divide by 1
    weight[1] = 0
    expected = by_hand(student.detach(), teacher, weight.tolist(), keep, 2.0) / weight.sum()
    value = mean_softmax_kl(student, teacher, weight, keep=keep, temperature=2.0)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    shares = (weight > 0).double().tolist()
    expected = by_hand(student.detach(), teacher, shares, torch.ones_like(keep), 1.0) / 5
    assert mean_softmax_kl(student, teacher, weight > 0).item() == pytest.approx(expected)


def test_without_any_weight_the_mean_is_a_zero_with_a_graph(rows):
    student, teacher, *_ = rows
    value = mean_softmax_kl(student, teacher, torch.zeros(6))
    value.backward()
    assert value == 0 and not student.grad.any()


def test_pixels_are_compared_at_the_smaller_size_where_they_are_valid():
    draw = torch.Generator().manual_seed(5)
    student = torch.randn(2, 3, 4, 6, generator=draw, dtype=torch.float64)
    teacher = torch.randn(2, 3, 2, 3, generator=draw, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 2, 3, generator=draw) > 0.4
    small = torch.nn.functional.avg_pool2d(student, 2)
    places = [(small[b, :, y, x], teacher[b, :, y, x]) for b, y, x in mask.nonzero().tolist()]
    own, target = (torch.stack(z).detach() for z in zip(*places, strict=True))
    full = torch.ones_like(own, dtype=torch.bool)
    expected = by_hand(own, target, [1.0] * len(own), full, 3.0) / len(own)
    student.requires_grad_()
    value = pixel_kl(student, teacher, mask=mask, temperature=3.0)
    assert value.item() == pytest.approx(expected, rel=1e-12)
    value.backward()
    assert teacher.grad is None and student.grad.any()
    everywhere = pixel_kl(student, teacher, mask=torch.ones_like(mask))
    assert pixel_kl(student, teacher) == everywhere != value
    with pytest.raises(ValueError, match="the mask has shape"):
        pixel_kl(student, teacher, mask=torch.ones(2, 4, 6) > 0)
