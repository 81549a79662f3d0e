import math
import warnings

import pytest
import torch
import torch.nn.functional as F

from segkd.methods.base import Context
from segkd.methods.dkd import DKD, dkd_loss
from segkd.methods.kd import kd_loss
from segkd.structures import Batch, Outputs


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def softmax(logits, temperature):
    powers = [math.exp(z / temperature) for z in logits]
    return [power / sum(powers) for power in powers]


def reference(student, teacher, labels, mask, temperature, weights):
    """The equation, pixel by pixel."""
    values = []
    for b, y, x in torch.cartesian_prod(*map(torch.arange, labels.shape)).tolist():
        label = labels[b, y, x].item()
        if not mask[b, y, x] or not 0 <= label < student.shape[1]:
            continue
        binary, others = [], []
        for logits in (student[b, :, y, x].tolist(), teacher[b, :, y, x].tolist()):
            p = softmax(logits, temperature)[label]
            binary.append([p, 1 - p])
            others.append(softmax(logits[:label] + logits[label + 1 :], temperature))
        values.append(weights[0] * kl(*reversed(binary)) + weights[1] * kl(*reversed(others)))
    return temperature**2 * sum(values) / len(values)


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(7)
    student, teacher = 2 * torch.randn(2, 2, 4, 3, 5, generator=draw, dtype=torch.float64)
    labels = torch.randint(4, (2, 3, 5), generator=draw)
    labels[0, 0, 0], labels[1, 2, 3], labels[1, 0, 1] = 255, -100, 4
    mask = torch.rand(2, 3, 5, generator=draw) > 0.3
    mask[0, 0, 0] = mask[1, 2, 3] = mask[1, 0, 1] = True
    return student.requires_grad_(), teacher, labels, mask


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("weights", [(1.0, 0.5), (1.0, 8.0), (0.0, 1.0)])
def test_equals_the_equation(maps, temperature, weights):
    student, teacher, labels, mask = maps
    value = dkd_loss(
        student,
        teacher,
        labels=labels,
        mask=mask,
        temperature=temperature,
        target_weight=weights[0],
        nontarget_weight=weights[1],
    )
    expected = reference(student.detach(), teacher, labels, mask, temperature, weights)
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_gradient_is_right(maps):
    student, teacher, labels, mask = maps
    assert torch.autograd.gradcheck(
        lambda z: dkd_loss(z, teacher, labels=labels, mask=mask, temperature=2.0), student
    )


def test_with_the_teachers_factor_it_is_kd(maps):
    """KD = KL of target against rest + (1 − p_t,y) · KL within the rest: the paper's equation 6."""
    student, teacher, labels, mask = maps
    one = torch.zeros_like(mask)
    one[1, 1, 2] = True
    labels = labels.masked_fill(one, 2)
    rest = 1 - teacher.softmax(1)[1, 2, 1, 2].item()
    value = dkd_loss(student, teacher, labels=labels, mask=one, nontarget_weight=rest)
    torch.testing.assert_close(value, kd_loss(student, teacher, mask=one))


def test_log_probabilities_teach_the_same_at_any_temperature(maps):
    student, teacher, labels, mask = maps
    for temperature in (1.0, 4.0):
        values = [
            dkd_loss(student, t, labels=labels, mask=mask, temperature=temperature)
            for t in (teacher, teacher.log_softmax(dim=1))
        ]
        torch.testing.assert_close(*values)


def test_without_a_mask_all_labelled_pixels_count(maps):
    student, teacher, labels, mask = maps
    value = dkd_loss(student, teacher, labels=labels)
    assert value == dkd_loss(student, teacher, labels=labels, mask=torch.ones_like(mask))


def naive(student, teacher, labels, temperature, weights):
    """How public codes write it: probabilities summed before the logarithm, the label's −1000."""
    chosen = F.one_hot(labels, student.shape[1]).movedim(-1, 1)
    p_s, p_t = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    b_s, b_t = (
        torch.stack([(p * chosen).sum(1), (p * (1 - chosen)).sum(1)], 1) for p in (p_s, p_t)
    )
    target = F.kl_div(b_s.log(), b_t, reduction="sum")
    hidden_s, hidden_t = (z / temperature - 1000.0 * chosen for z in (student, teacher))
    other = F.kl_div(hidden_s.log_softmax(1), hidden_t.softmax(1), reduction="sum")
    return temperature**2 * (weights[0] * target + weights[1] * other) / labels.numel()


def test_saturated_logits_are_finite_where_the_naive_form_is_not():
    student, teacher = torch.zeros(2, 1, 4, 2, 2).unbind()
    student[:, 1], teacher[:, 2] = 600.0, 600.0
    labels = torch.ones(1, 2, 2, dtype=torch.int64)
    student.requires_grad_()
    bad = naive(student, teacher, labels, 1.0, (1, 1))
    assert not bad.isfinite()
    value = dkd_loss(student, teacher, labels=labels)
    value.backward()
    # The rest of the student is uniform over three classes, the teacher's is one class.
    assert value.item() == pytest.approx(600 - math.log(3) + 0.5 * math.log(3))
    assert student.grad.isfinite().all() and student.grad.any()


def test_two_classes_have_no_rest_to_tell_apart():
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 2, 3, 3, generator=draw)
    student.requires_grad_()
    labels = torch.randint(2, (2, 3, 3), generator=draw)
    value = dkd_loss(student, teacher, labels=labels, target_weight=0.0, nontarget_weight=8.0)
    value.backward()
    assert value == 0 and not student.grad.any()
    whole = dkd_loss(student, teacher, labels=labels)
    torch.testing.assert_close(whole, kd_loss(student, teacher))


def test_half_types_are_computed_in_float32(maps):
    student, teacher, labels, mask = maps
    half = [z.detach().bfloat16() for z in (student, teacher)]
    value = dkd_loss(*half, labels=labels, mask=mask)
    assert value.dtype is torch.float32
    assert value == dkd_loss(*(z.float() for z in half), labels=labels, mask=mask)


def test_nearest_upsampling_changes_nothing(maps):
    student, teacher, labels, mask = maps
    larger = [
        x.repeat_interleave(2, -1).repeat_interleave(2, -2)
        for x in (student, teacher, labels, mask)
    ]
    value = dkd_loss(*larger[:2], labels=larger[2], mask=larger[3])
    torch.testing.assert_close(value, dkd_loss(student, teacher, labels=labels, mask=mask))


def test_labels_of_another_size_are_refused(maps):
    student, teacher, labels, _ = maps
    with pytest.raises(ValueError, match=r"labels have shape \(2, 3, 4\)"):
        dkd_loss(student, teacher, labels=labels[..., :4])


def peer_mmrazor(student, teacher, labels, temperature, weights):
    """``size_average=False`` makes ``mean`` a sum, but leaves its default, ``batchmean``."""
    rows = torch.rand(3, 4).log(), torch.rand(3, 4)
    total = F.kl_div(*rows, reduction="sum")
    for reduction, divisor in (("mean", 1), ("batchmean", 3)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = F.kl_div(*rows, size_average=False, reduction=reduction)
        torch.testing.assert_close(found, total / divisor)
    return naive(student, teacher, labels, temperature, weights)


PEERS = {
    "mdistiller CIFAR-100": (naive, 4.0, (1.0, 8.0)),
    "mdistiller ImageNet": (naive, 1.0, (1.0, 0.5)),
    "mmrazor": (peer_mmrazor, 1.0, (1.0, 0.5)),
}


def test_every_conversion_is_checked():
    assert PEERS.keys() == DKD.conversions.keys()


@pytest.mark.parametrize("peer", PEERS)
def test_converted_weight_acts_as_the_peers(maps, peer):
    student, teacher, labels, _ = maps
    formula, temperature, weights = PEERS[peer]
    labels = labels.clamp(0, 3)
    theirs = formula(student, teacher, labels, temperature, weights)
    ours = dkd_loss(
        student,
        teacher,
        labels=labels,
        temperature=temperature,
        target_weight=weights[0],
        nontarget_weight=weights[1],
    )
    torch.testing.assert_close(theirs, DKD.conversions[peer].at(N=2, h=3, w=5) * ours)


@pytest.mark.parametrize("mask", ["valid", "not_padding"])
def test_entry_weighs_its_terms_as_the_function_does(maps, mask):
    student, teacher, labels, _ = maps
    labels = labels.masked_fill((labels < 0) | (labels > 3), 255)
    batch = Batch(torch.zeros(2, 3, 3, 5), labels, labels > 0, torch.arange(2))
    assert (batch.not_padding & ~batch.valid).any()
    method = DKD(DKD.Config(temperature=3.0))
    terms = method.loss(Outputs(student), Outputs(teacher), batch, Context(batch, mask=mask))
    total = sum(DKD.default_weights[name] * term.value for name, term in terms.items())
    expected = dkd_loss(student, teacher, labels=labels, mask=batch.valid, temperature=3.0)
    torch.testing.assert_close(total, expected)
    assert all(term.count == batch.valid.sum() for term in terms.values())
