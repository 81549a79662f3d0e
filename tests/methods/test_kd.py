import math

import pytest
import torch

from segkd.methods.kd import KD, kd_loss


def reference(student, teacher, mask, temperature):
    """The equation, pixel by pixel."""
    pixels = [
        (b, y, x) for b, y, x in torch.cartesian_prod(*map(torch.arange, mask.shape)).tolist()
    ]
    values = []
    for b, y, x in pixels:
        if not mask[b, y, x]:
            continue
        exp_s = [math.exp(z / temperature) for z in student[b, :, y, x].tolist()]
        exp_t = [math.exp(z / temperature) for z in teacher[b, :, y, x].tolist()]
        p_s, p_t = [e / sum(exp_s) for e in exp_s], [e / sum(exp_t) for e in exp_t]
        values.append(sum(t * math.log(t / s) for s, t in zip(p_s, p_t, strict=True)))
    return temperature**2 * sum(values) / len(values)


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(7)
    student, teacher = 2 * torch.randn(2, 2, 4, 3, 5, generator=draw, dtype=torch.float64)
    mask = torch.rand(2, 3, 5, generator=draw) > 0.3
    return student.requires_grad_(), teacher, mask


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_equals_the_equation(maps, temperature):
    student, teacher, mask = maps
    value = kd_loss(student, teacher, mask=mask, temperature=temperature)
    expected = reference(student.detach(), teacher, mask, temperature)
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_gradient_is_right(maps):
    student, teacher, mask = maps
    assert torch.autograd.gradcheck(
        lambda z: kd_loss(z, teacher, mask=mask, temperature=2.0), student
    )


def test_without_a_mask_all_pixels_count(maps):
    student, teacher, mask = maps
    value = kd_loss(student, teacher)
    assert value == kd_loss(student, teacher, mask=torch.ones_like(mask))


def test_log_probabilities_teach_the_same_at_any_temperature(maps):
    student, teacher, mask = maps
    log_prob = teacher.log_softmax(dim=1)
    for temperature in (1.0, 4.0):
        torch.testing.assert_close(
            kd_loss(student, log_prob, mask=mask, temperature=temperature),
            kd_loss(student, teacher, mask=mask, temperature=temperature),
        )


def peer_skd(s, t, temperature):
    """Soft cross-entropy summed over everything, divided by h·w, minus the constant entropy."""
    p_t = t.softmax(1)
    entropy = -(p_t * p_t.log()).sum()
    return (-(p_t * s.log_softmax(1)).sum() - entropy) / (s.shape[2] * s.shape[3])


def peer_torchdistiller(s, t, temperature):
    """Mean over all elements, no T²."""
    loss = torch.nn.KLDivLoss(reduction="none")
    return loss((s / temperature).log_softmax(1), (t / temperature).softmax(1)).mean()


def peer_cirkd(s, t, temperature):
    """Rows of pixels, batchmean, T²."""
    s, t = (z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]) / temperature for z in (s, t))
    loss = torch.nn.KLDivLoss(reduction="batchmean")
    return loss(s.log_softmax(1), t.softmax(1)) * temperature**2


def peer_mmrazor(s, t, temperature):
    """Batchmean of the map as it is: divided by the number of images only."""
    loss = torch.nn.KLDivLoss(reduction="batchmean")
    return loss((s / temperature).log_softmax(1), (t / temperature).softmax(1)) * temperature**2


def peer_mean_over_classes(s, t, temperature):
    """T² · KL with nn.KLDivLoss's default mean, over pixels and classes."""
    return peer_torchdistiller(s, t, temperature) * temperature**2


def peer_lskd(s, t, temperature):
    """Rows less their mean, by 1e-7 plus their (unbiased) deviation; batchmean of rows, T²."""
    rows = [z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]) for z in (s, t)]
    rows = [(z - z.mean(-1, keepdim=True)) / (1e-7 + z.std(-1, keepdim=True)) for z in rows]
    p_s, p_t = (z / temperature for z in rows)
    total = torch.nn.functional.kl_div(p_s.log_softmax(1), p_t.softmax(1), reduction="none")
    return total.sum(1).mean() * temperature**2


PEERS = {
    "SKD": (peer_skd, 1.0),
    "TorchDistiller, IFVD": (peer_torchdistiller, 3.0),
    "CIRKD, Af-DCD": (peer_cirkd, 3.0),
    "mmrazor KLDivergence": (peer_mmrazor, 3.0),
    "TAKD": (peer_mean_over_classes, 3.0),
    "Tf-KD self": (peer_mean_over_classes, 6.0),
    "LSKD": (peer_lskd, 2.0),
}
OPTIONS = {"LSKD": {"standardize": True}}


def test_every_conversion_is_checked():
    assert PEERS.keys() == KD.conversions.keys()


@pytest.mark.parametrize("peer", PEERS)
def test_converted_weight_acts_as_the_peers(maps, peer):
    student, teacher, _ = maps
    formula, temperature = PEERS[peer]
    theirs = KD.conversions[peer].weight * formula(student, teacher, temperature)
    weight = KD.conversions[peer].at(N=2, K=4, h=3, w=5, T=temperature)
    options = OPTIONS.get(peer, {})
    ours = kd_loss(student, teacher, temperature=temperature, **options)
    torch.testing.assert_close(theirs, weight * ours)


def test_conversion_reads_with_an_example():
    assert str(KD.conversions["SKD"]).startswith("10·N = 80 at N=8")
    assert str(KD.conversions["TorchDistiller, IFVD"]).startswith("10/(K·T²) = 0.5263 at K=19, T=1")
    assert str(KD.conversions["mmrazor KLDivergence"]).startswith("1·h·w = 8192 at h=64, w=128")
