import math

import pytest
import torch

from segkd.methods.base import Context
from segkd.methods.cs_kd import CSKD, cs_kd_loss
from segkd.structures import Batch, Outputs


def softmax(logits, temperature):
    powers = [math.exp(z / temperature) for z in logits]
    return [power / sum(powers) for power in powers]


def pairs_of(student, labels, mask, temperature):
    """By pixel: the KL from each pixel of its class, itself among them."""
    pixels = []
    for b, y, x in torch.cartesian_prod(*map(torch.arange, labels.shape)).tolist():
        label = labels[b, y, x].item()
        if mask[b, y, x] and 0 <= label < student.shape[1]:
            pixels.append((label, softmax(student[b, :, y, x].tolist(), temperature)))
    for label, p in pixels:
        same = [other for other_label, other in pixels if other_label == label]
        yield [sum(t * math.log(t / s) for s, t in zip(p, other, strict=True)) for other in same]


def reference(student, labels, mask, temperature):
    """The equation with the mean over all partners."""
    means = [sum(row) / len(row) for row in pairs_of(student, labels, mask, temperature)]
    return temperature**2 * sum(means) / len(means)


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(7)
    student = 2 * torch.randn(2, 4, 3, 5, generator=draw, dtype=torch.float64)
    labels = torch.randint(3, (2, 3, 5), generator=draw)
    labels[0, 0, 0], labels[1, 2, 3], labels[1, 0, 1] = 255, -100, 4
    mask = torch.rand(2, 3, 5, generator=draw) > 0.3
    mask[0, 0, 0] = mask[1, 2, 3] = mask[1, 0, 1] = True
    return student.requires_grad_(), labels, mask


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_equals_the_mean_over_all_pairs(maps, temperature):
    student, labels, mask = maps
    value = cs_kd_loss(student, labels=labels, mask=mask, temperature=temperature)
    expected = reference(student.detach(), labels, mask, temperature)
    assert value.item() == pytest.approx(expected, rel=1e-10)


def test_gradient_is_that_of_the_pairs_with_a_constant_partner(maps):
    student, labels, mask = maps
    value = cs_kd_loss(student, labels=labels, mask=mask, temperature=2.0)
    (found,) = torch.autograd.grad(value, student)
    counted = mask & (labels >= 0) & (labels < 4)
    rows, names = student.movedim(1, -1)[counted] / 2, labels[counted]
    p, log_p = rows.detach().softmax(1), rows.log_softmax(1)
    kl = (p * p.log()).sum(1)[:, None] - p @ log_p.T  # partner, pixel
    same = (names[:, None] == names).double()
    naive = 4 * ((kl * same).sum(0) / same.sum(0)).mean()
    torch.testing.assert_close(value, naive)
    torch.testing.assert_close(found, torch.autograd.grad(naive, student)[0])


def test_random_pairs_teach_the_same_on_average(maps):
    """Without self-pairs the mean over n − 1 partners is n / (n − 1) times the mean over n."""
    student, _, _ = maps
    labels, mask = torch.zeros(2, 3, 5).long(), torch.ones(2, 3, 5).bool()
    draw, total = torch.Generator().manual_seed(0), 0
    for _ in range(400):
        total += cs_kd_loss(student, labels=labels, pairs="random", generator=draw)
    (found,) = torch.autograd.grad(total / 400, student)
    value = cs_kd_loss(student, labels=labels, mask=mask)
    (expected,) = torch.autograd.grad(value, student)
    similarity = torch.cosine_similarity(found.flatten(), expected.flatten(), 0)
    assert similarity > 0.97 and (total / 400).item() == pytest.approx(value.item(), rel=0.1)


def test_random_pairs_follow_the_generator_and_have_a_value_of_pairs(maps):
    student, labels, mask = maps
    one_class = mask & (labels == 1)
    values = [
        cs_kd_loss(
            student,
            labels=labels,
            mask=one_class,
            pairs="random",
            temperature=1.0,
            generator=torch.Generator().manual_seed(seed),
        ).item()
        for seed in (1, 1, 2)
    ]
    assert values[0] == values[1] != values[2]
    rows = list(pairs_of(student.detach(), labels, one_class, 1.0))
    others = [[v for i, v in enumerate(row) if i != j] for j, row in enumerate(rows)]
    lowest, highest = (sum(map(best, others)) / len(others) for best in (min, max))
    assert lowest <= values[0] <= highest


def test_pixels_alone_in_their_class_are_left_out_of_random_pairs(maps):
    student, labels, _ = maps
    labels = torch.full_like(labels, 255)
    labels[0, 0, :2], labels[0, 2, 2] = 1, 3
    value = cs_kd_loss(student, labels=labels, pairs="random")
    without = cs_kd_loss(student, labels=labels.masked_fill(labels == 3, 255), pairs="random")
    assert value == without > 0


def test_random_pairs_of_nothing_are_a_zero_with_a_graph(maps):
    student, labels, _ = maps
    value = cs_kd_loss(student, labels=torch.full_like(labels, 255), pairs="random")
    value.backward()
    assert value == 0 and not student.grad.any()


def test_predictions_that_agree_cost_nothing():
    student = torch.zeros(1, 3, 2, 4, dtype=torch.float64)
    student[:, 1, :, 2:] = 5.0
    labels = torch.tensor([[[0, 0, 2, 2]] * 2])
    student.requires_grad_()
    value = cs_kd_loss(student, labels=labels)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12) and student.grad.abs().max() < 1e-12


def test_interior_leaves_out_borders_of_classes_and_void():
    labels = torch.zeros(1, 6, 9, dtype=torch.int64)
    labels[..., 5:] = 1
    labels[0, 0, 0] = 255
    student = torch.randn(1, 3, 6, 9, requires_grad=True)
    cs_kd_loss(student, labels=labels, interior=1).backward()
    expected = torch.ones(6, 9, dtype=torch.bool)
    expected[:, 4:6] = expected[:2, :2] = False
    assert torch.equal(student.grad[0].abs().sum(0) > 0, expected)


@pytest.mark.parametrize("pairs", ["mean", "random"])
def test_entry_passes_its_options_on(pairs):
    labels = torch.zeros(2, 8, 8, dtype=torch.int64)
    labels[..., 4:] = 1
    batch = Batch(torch.zeros(2, 3, 8, 8), labels, labels >= 0, torch.arange(2))
    student = Outputs(torch.randn(2, 3, 8, 8))
    method = CSKD(CSKD.Config(interior=1, pairs=pairs, temperature=2.0))

    def draw():
        return torch.Generator().manual_seed(3)

    term = method.loss(student, None, batch, Context(batch, generator=draw()))["cs_kd"]
    assert (term.count is None) == (pairs == "random")
    assert term.count is None or term.count == 2 * 8 * 6
    expected = cs_kd_loss(
        student.logits, labels=labels, interior=1, pairs=pairs, temperature=2.0, generator=draw()
    )
    assert term.value == expected


def test_nothing_at_invalid_positions_matters_for_the_interior():
    labels, mask = torch.zeros(1, 6, 9, dtype=torch.int64), torch.ones(1, 6, 9, dtype=torch.bool)
    mask[..., 5:] = False
    student = torch.randn(1, 3, 6, 9)
    values = [
        cs_kd_loss(
            student + shift * ~mask.unsqueeze(1) * torch.rand(3, 1, 1),
            labels=labels.masked_fill(~mask, label),
            mask=mask,
            interior=1,
        )
        for shift, label in ((0, 0), (9, 0), (0, 1), (9, 255))
    ]
    inner = mask.clone()
    inner[..., 4] = False
    torch.testing.assert_close(values, [cs_kd_loss(student, labels=labels, mask=inner)] * 4)


def test_entry_pairs_pixels_of_all_processes(maps):
    """With a process of the same images beside it, mean pairs are equal; random ones are two."""
    student, labels, mask = (x.detach() for x in maps)
    labels = labels.masked_fill((labels < 0) | (labels > 3), 255)
    batch = Batch(torch.zeros(2, 3, 3, 5), labels, mask, torch.arange(2))
    sent = []
    context = Context(batch, all_sum=lambda x: (sent.append(x), 2 * x)[1])
    value = CSKD().loss(Outputs(student), None, batch, context)["cs_kd"].value
    torch.testing.assert_close(value, cs_kd_loss(student, labels=labels, mask=batch.valid))
    assert len(sent) == 1

    draw = [torch.Generator().manual_seed(1) for _ in range(2)]
    context = Context(batch, gather=lambda x: torch.cat([x, x]), generator=draw[0])
    method = CSKD(CSKD.Config(pairs="random"))
    value = method.loss(Outputs(student), None, batch, context)["cs_kd"].value
    twice = [torch.cat([x, x]) for x in (student, labels, batch.valid)]
    expected = cs_kd_loss(
        twice[0], labels=twice[1], mask=twice[2], pairs="random", generator=draw[1]
    )
    assert value == expected


@pytest.mark.parametrize("pairs", ["mean", "random"])
def test_saturated_logits_are_finite(pairs):
    student = (1e4 * torch.eye(3)).view(1, 3, 1, 3).requires_grad_()
    value = cs_kd_loss(student, labels=torch.zeros(1, 1, 3).long(), pairs=pairs)
    value.backward()
    assert value.isfinite() and value > 1e3 and student.grad.isfinite().all()


def test_half_types_are_computed_in_float32(maps):
    student, labels, _ = maps
    value = cs_kd_loss(student.bfloat16(), labels=labels)
    assert value.dtype is torch.float32
    assert value == cs_kd_loss(student.bfloat16().float(), labels=labels)


def test_doubling_and_nearest_upsampling_change_nothing(maps):
    student, labels, mask = maps
    value = cs_kd_loss(student, labels=labels, mask=mask)
    larger = [x.repeat_interleave(2, -1).repeat_interleave(2, -2) for x in (student, labels, mask)]
    torch.testing.assert_close(cs_kd_loss(larger[0], labels=larger[1], mask=larger[2]), value)
    twice = [torch.cat([x, x]) for x in (student, labels, mask)]
    torch.testing.assert_close(cs_kd_loss(twice[0], labels=twice[1], mask=twice[2]), value)


def peer(student, partner):
    """Batchmean of the KL from the other half's predictions, T² with T = 4."""
    loss = torch.nn.KLDivLoss(reduction="batchmean")
    return loss((student / 4).log_softmax(1), (partner.detach() / 4).softmax(1)) * 16


def test_every_conversion_is_checked():
    assert CSKD.conversions.keys() == {"cs-kd"}


def test_converted_weight_acts_as_the_peers(maps):
    """Two images of one pixel and one class: each is the other's partner."""
    student, _, _ = maps
    pair = student[:, :, :1, :1]
    first, second = pair.flatten(1)
    theirs = (peer(first[None], second[None]) + peer(second[None], first[None])) / 2
    ours = cs_kd_loss(pair, labels=torch.ones(2, 1, 1).long(), pairs="random")
    torch.testing.assert_close(theirs, CSKD.conversions["cs-kd"].at() * ours)
    assert CSKD.Config().temperature == 4 and CSKD.Config().weight == 1
