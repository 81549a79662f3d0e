import math

import pytest
import torch
from torch import nn

from segkd.methods.base import BuildContext, TapInfo
from segkd.methods.cwd import CWD, cwd_loss


def reference(student, teacher, mask, temperature):
    """The equation, map by map, over the valid positions of each image."""
    per_image = []
    for s_maps, t_maps, valid in zip(student, teacher, mask, strict=True):
        if not valid.any():
            continue
        total = 0.0
        for s_map, t_map in zip(s_maps, t_maps, strict=True):
            exp_s = [math.exp(a / temperature) for a in s_map[valid].tolist()]
            exp_t = [math.exp(a / temperature) for a in t_map[valid].tolist()]
            for e_s, e_t in zip(exp_s, exp_t, strict=True):
                phi_s, phi_t = e_s / sum(exp_s), e_t / sum(exp_t)
                total += phi_t * math.log(phi_t / phi_s)
        per_image.append(total / len(s_maps))
    return temperature**2 * sum(per_image) / len(per_image)


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(7)
    student, teacher = 2 * torch.randn(2, 3, 4, 3, 5, generator=draw, dtype=torch.float64)
    mask = torch.rand(3, 3, 5, generator=draw) > 0.3
    mask[1] = False
    return student.requires_grad_(), teacher, mask


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_equals_the_equation(maps, temperature):
    student, teacher, mask = maps
    value = cwd_loss(student, teacher, mask=mask, temperature=temperature)
    expected = reference(student.detach(), teacher, mask, temperature)
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_gradient_is_right(maps):
    student, teacher, mask = maps
    assert torch.autograd.gradcheck(lambda a: cwd_loss(a, teacher, mask=mask), student)


def test_without_a_mask_all_positions_count(maps):
    student, teacher, mask = maps
    assert cwd_loss(student, teacher) == cwd_loss(student, teacher, mask=torch.ones_like(mask))


def test_invalid_positions_are_no_part_of_a_map(maps):
    student, teacher, mask = maps
    before = cwd_loss(student, teacher, mask=mask)
    hidden = ~mask.unsqueeze(1)
    after = cwd_loss(student + 50 * hidden, teacher + 99 * hidden, mask=mask)
    torch.testing.assert_close(after, before)


def naive(student, teacher, temperature):
    """How public codes write it: the logarithm of a softmax, over N·C."""
    phi_s, phi_t = ((a / temperature).flatten(2).softmax(2) for a in (student, teacher))
    loss = torch.nn.KLDivLoss(reduction="sum")
    return loss(phi_s.log(), phi_t) * temperature**2 / (student.shape[0] * student.shape[1])


def test_peaky_maps_are_finite_where_the_naive_form_is_not():
    student, teacher = torch.zeros(2, 1, 2, 4, 6).unbind()
    student[..., 0, 0], teacher[..., 3, 5] = 600.0, 600.0
    student.requires_grad_()
    assert not naive(student, teacher, 4.0).isfinite()
    value = cwd_loss(student, teacher)
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all()
    assert value.item() == pytest.approx(16 * 150)


def peer_mmrazor(student, teacher, temperature):
    s, t = (a.reshape(-1, a[0, 0].numel()) / temperature for a in (student, teacher))
    rows = (t.softmax(1) * (t.log_softmax(1) - s.log_softmax(1))).sum(1)
    return rows.sum() * temperature**2 / (student.shape[0] * student.shape[1])


def peer_cirkd(student, teacher, temperature, channels=2):
    """Divides by the student's own channels, read before its adapter."""
    return naive(student, teacher, temperature) * student.shape[1] / channels


PEERS = {
    "TorchDistiller logits": (naive, 4.0, 4),
    "TorchDistiller features": (naive, 4.0, 4),
    "CIRKD logits": (naive, 4.0, 4),
    "CIRKD features": (peer_cirkd, 4.0, 2),
    "CIRKD third block": (naive, 4.0, 4),
    "mmrazor": (peer_mmrazor, 1.0, 4),
}


def test_every_conversion_is_checked():
    assert PEERS.keys() == CWD.conversions.keys()


@pytest.mark.parametrize("peer", PEERS)
def test_converted_weight_acts_as_the_peers(maps, peer):
    student, teacher, _ = maps
    formula, temperature, own_channels = PEERS[peer]
    theirs = CWD.conversions[peer].weight * formula(student, teacher, temperature)
    weight = CWD.conversions[peer].at(C_s=own_channels, C_t=4)
    torch.testing.assert_close(theirs, weight * cwd_loss(student, teacher, temperature=temperature))


def test_the_published_weight_is_that_of_the_tap():
    assert CWD(CWD.Config(weight="paper")).weight == 3
    assert CWD(CWD.Config(tap="head", weight="paper")).weight == 50
    assert CWD.Config(tap="head", weight=2).weight == 2


def test_adapter_leads_to_the_channels_of_the_teachers_tap():
    method = CWD(CWD.Config(tap="stage4", teacher_tap="head"))
    assert method.needs.student == ("stage4",) and method.needs.teacher == ("head",)
    method.build(BuildContext({"stage4": TapInfo(8, 16)}, {"head": TapInfo(32, 8)}, 5))
    assert isinstance(method.adapter, nn.Conv2d) and method.adapter.weight.shape == (32, 8, 1, 1)
