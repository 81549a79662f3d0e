import math

import pytest
import torch
import torch.nn.functional as F

from segkd.methods import selfsim
from segkd.methods.cirkd import cirkd_loss
from segkd.methods.selfsim import SelfSim, selfsim_loss
from segkd.testing import check_method

F64 = torch.float64


def cosine(first, second):
    dot = sum(a * b for a, b in zip(first, second, strict=True))
    return dot / math.sqrt(sum(a * a for a in first) * sum(b * b for b in second))


def reference(student, teacher, mask, temperature):
    """The equation, row by row; only valid positions of one image."""
    values = []
    for s_map, t_map, valid in zip(student, teacher, mask, strict=True):
        nodes = [x[:, valid].T.tolist() for x in (s_map, t_map)]
        for i in range(len(nodes[0])):
            rows = []
            for side in nodes:
                powers = [math.exp(cosine(side[i], other) / temperature) for other in side]
                rows.append([power / sum(powers) for power in powers])
            values.append(sum(t * math.log(t / s) for s, t in zip(*rows, strict=True)))
    return sum(values) / len(values)


@pytest.fixture
def maps():
    """Unequal channels; images with all, some and no valid positions."""
    draw = torch.Generator().manual_seed(7)
    student = torch.randn(3, 2, 3, 4, generator=draw, dtype=F64)
    teacher = torch.randn(3, 5, 3, 4, generator=draw, dtype=F64)
    mask = torch.rand(3, 3, 4, generator=draw) > 0.3
    mask[0], mask[2] = True, False
    return student.requires_grad_(), teacher, mask


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_equals_the_equation_and_its_gradient_is_right(maps, temperature):
    student, teacher, mask = maps

    def loss(features):
        return selfsim_loss(features, teacher, mask=mask, temperature=temperature)

    expected = reference(student.detach(), teacher, mask, temperature)
    assert loss(student).item() == pytest.approx(expected, rel=1e-9)
    assert torch.autograd.gradcheck(loss, student)


def test_larger_maps_have_the_same_value_and_gradient(monkeypatch):
    draw = torch.Generator().manual_seed(8)
    student, teacher = (torch.randn(2, c, 16, 17, generator=draw, dtype=F64) for c in (3, 5))
    mask = torch.rand(2, 16, 17, generator=draw) > 0.3
    student.requires_grad_()

    def value_and_gradient():
        value = selfsim_loss(student, teacher, mask=mask)
        return value, *torch.autograd.grad(value, student)

    found, calls = value_and_gradient(), []
    monkeypatch.setattr(selfsim, "is_worthwhile", lambda *sizes: calls.append(sizes))
    torch.testing.assert_close(found, value_and_gradient())
    assert calls == [(16 * 17, 0.07)]


def test_of_one_image_it_is_cirkds_term_and_of_more_it_has_no_pairs_of_images(maps):
    student, teacher, mask = maps
    keys = {"temperature": 0.07}
    values = []
    for b in range(2):
        one = student[b : b + 1], teacher[b : b + 1]
        found = selfsim_loss(*one, mask=mask[b : b + 1], **keys)
        torch.testing.assert_close(found, cirkd_loss(*one, mask=mask[b : b + 1], **keys))
        values.append(found * mask[b].sum())
    both = selfsim_loss(student, teacher, mask=mask, **keys)
    torch.testing.assert_close(both, sum(values) / mask.sum())
    assert not torch.isclose(both, cirkd_loss(student, teacher, mask=mask, **keys), rtol=1e-3)


def test_masked_positions_are_neither_rows_nor_columns(maps):
    student, teacher, mask = maps
    hidden = ~mask.unsqueeze(1)
    before = selfsim_loss(student, teacher, mask=mask)
    noise = 50 * torch.randn_like(student), 50 * torch.randn_like(teacher)
    after = selfsim_loss(student + noise[0] * hidden, teacher + noise[1] * hidden, mask=mask)
    torch.testing.assert_close(after, before)
    # As columns alone they would remain if only rows were left out.
    alone = selfsim_loss(student[:1, :, :, :2], teacher[:1, :, :, :2])
    half = torch.zeros_like(mask[:1])
    half[..., :2] = True
    torch.testing.assert_close(selfsim_loss(student[:1], teacher[:1], mask=half), alone)
    (gradient,) = torch.autograd.grad(before, student)
    assert not gradient.masked_fill(~hidden, 0).any() and gradient.any()


def peer_local(student, teacher):
    """Tokens (B, N, C) of length 1, rows of all images as one batch, KLDivLoss by batchmean."""
    tokens = [F.normalize(x.flatten(2).mT, dim=2) for x in (student, teacher)]
    rows = [(x @ x.mT).flatten(0, 1) / 0.07 for x in tokens]
    return F.kl_div(rows[0].log_softmax(1), rows[1].softmax(1), reduction="batchmean")


def test_converted_weight_acts_as_the_peer(maps):
    student, teacher, _ = maps
    (conversion,) = SelfSim.conversions.values()
    ours = conversion.at() * selfsim_loss(student, teacher)
    torch.testing.assert_close(ours, conversion.weight * peer_local(student, teacher))


def test_it_has_no_layers_and_needs_neither_labels_nor_classes():
    method = SelfSim()
    assert not method.needs.labels and "logits" not in method.needs.teacher
    assert method.needs.student == ("stage5",)


def test_it_keeps_the_promises():
    check_method(SelfSim)


def test_large_maps_are_averaged_over_valid_positions():
    """3x4 positions, at most 4: windows of 2x2, the lower ones a row high."""
    draw = torch.Generator().manual_seed(8)
    student, teacher = torch.randn(2, 2, 3, 3, 4, generator=draw, dtype=F64)
    mask = torch.rand(2, 3, 4, generator=draw) > 0.4
    mask[0, :2, :2] = False  # a window without any
    small = [torch.zeros(2, 3, 2, 2, dtype=F64) for _ in range(2)]
    keep = torch.zeros(2, 2, 2, dtype=torch.bool)
    for b, i, j in torch.cartesian_prod(*map(torch.arange, keep.shape)).tolist():
        window = b, slice(2 * i, 2 * i + 2), slice(2 * j, 2 * j + 2)
        valid = mask[window]
        if valid.any():
            keep[b, i, j] = True
            for pooled, maps in zip(small, (student, teacher), strict=True):
                pooled[b, :, i, j] = maps[b][:, window[1], window[2]][:, valid].mean(1)
    found = selfsim_loss(student, teacher, mask=mask, positions=4)
    assert found.item() == pytest.approx(reference(*small, keep, 0.07), rel=1e-9)
    assert torch.equal(
        selfsim_loss(student, teacher, mask=mask, positions=12),
        selfsim_loss(student, teacher, mask=mask),
    )
