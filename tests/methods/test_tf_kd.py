import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from segkd.errors import ConfigError
from segkd.methods.base import BuildContext, Context, TapInfo
from segkd.methods.kd import kd_loss
from segkd.methods.tf_kd import TfKD, tf_kd_loss
from segkd.structures import Batch, Outputs


def softmax(logits, temperature):
    powers = [math.exp(z / temperature) for z in logits]
    return [power / sum(powers) for power in powers]


def reference(student, labels, mask, temperature, a, parity):
    """The equation, pixel by pixel."""
    classes, values = student.shape[1], []
    for b, y, x in torch.cartesian_prod(*map(torch.arange, labels.shape)).tolist():
        label = labels[b, y, x].item()
        if not mask[b, y, x] or not 0 <= label < classes:
            continue
        u = [a if k == label else (1 - a) / (classes - 1) for k in range(classes)]
        u = softmax(u if parity else [math.log(p) for p in u], temperature)
        p_s = softmax(student[b, :, y, x].tolist(), 1.0 if parity else temperature)
        values.append(sum(t * math.log(t / s) for s, t in zip(p_s, u, strict=True)))
    return (1.0 if parity else temperature**2) * sum(values) / len(values)


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(7)
    student = 2 * torch.randn(2, 4, 3, 5, generator=draw, dtype=torch.float64)
    labels = torch.randint(4, (2, 3, 5), generator=draw)
    labels[0, 0, 0], labels[1, 2, 3], labels[1, 0, 1] = 255, -100, 4
    mask = torch.rand(2, 3, 5, generator=draw) > 0.3
    mask[0, 0, 0] = mask[1, 2, 3] = mask[1, 0, 1] = True
    return student.requires_grad_(), labels, mask


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("temperature, a", [(20.0, 0.99), (1.0, 0.6)])
def test_equals_the_equation(maps, temperature, a, parity):
    student, labels, mask = maps
    value = tf_kd_loss(
        student,
        labels=labels,
        mask=mask,
        temperature=temperature,
        target_probability=a,
        parity=parity,
    )
    expected = reference(student.detach(), labels, mask, temperature, a, parity)
    assert value.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("parity", [False, True])
def test_gradient_is_right(maps, parity):
    student, labels, mask = maps
    assert torch.autograd.gradcheck(
        lambda z: tf_kd_loss(z, labels=labels, mask=mask, temperature=3.0, parity=parity), student
    )


def test_without_a_mask_all_labelled_pixels_count(maps):
    student, labels, mask = maps
    value = tf_kd_loss(student, labels=labels)
    assert value == tf_kd_loss(student, labels=labels, mask=torch.ones_like(mask))


def test_least_where_the_label_leads_by_the_designed_gap():
    labels = torch.full((1, 1, 1), 4)
    gap = math.log(0.99 * 18 / 0.01)
    assert gap == pytest.approx(7.5, abs=0.02)
    values = []
    for shift in (-1.0, 0.0, 1.0):
        student = torch.zeros(1, 19, 1, 1, dtype=torch.float64)
        student[:, 4] = gap + shift
        values.append(tf_kd_loss(student, labels=labels).item())
    assert values[1] == pytest.approx(0, abs=1e-12) and min(values[0], values[2]) > 0.01


def test_the_parity_target_is_nearly_uniform():
    """At T = 20 and 19 classes: 0.0552 for the label, 0.0525 for each other class."""
    target = torch.full((1, 19, 1, 1), 0.0525, dtype=torch.float64)
    target[:, 4] = 0.0552
    labels = torch.full((1, 1, 1), 4)
    value = tf_kd_loss(target.log(), labels=labels, parity=True)
    assert value.item() == pytest.approx(0, abs=1e-6)
    paper = tf_kd_loss(target.log(), labels=labels)
    assert paper > 1


def test_half_types_are_computed_in_float32(maps):
    student, labels, _ = maps
    value = tf_kd_loss(student.bfloat16(), labels=labels)
    assert value.dtype is torch.float32
    assert value == tf_kd_loss(student.bfloat16().float(), labels=labels)


def test_nearest_upsampling_changes_nothing(maps):
    student, labels, mask = maps
    larger = [x.repeat_interleave(2, -1).repeat_interleave(2, -2) for x in (student, labels, mask)]
    torch.testing.assert_close(
        tf_kd_loss(larger[0], labels=larger[1], mask=larger[2]),
        tf_kd_loss(student, labels=labels, mask=mask),
    )


def test_bad_options_are_refused():
    for value in (0.0, 1.0):
        with pytest.raises(ValidationError, match="target_probability"):
            TfKD.Config(target_probability=value)
    method = TfKD(TfKD.Config(target_probability=0.5))
    spec = {
        classes: BuildContext({"logits": TapInfo(classes, 8)}, {}, classes) for classes in (2, 3)
    }
    method.build(spec[3])
    with pytest.raises(ConfigError, match=r"2 classes.*above 0\.5.*target_probability=0\.99"):
        method.build(spec[2])


def designed(student, labels, a=0.99):
    teacher = torch.full_like(student, (1 - a) / (student.shape[1] - 1), requires_grad=False)
    return teacher.scatter_(1, labels.unsqueeze(1), a)


def paper(student, labels):
    """0.1 of the KL between softened distributions."""
    return 0.1 * kd_loss(student, designed(student, labels).log(), temperature=20.0)


def peer(student, labels):
    """alpha 0.1 · multiplier 100 · mean over all elements, probabilities tempered."""
    target = (designed(student, labels) / 20).softmax(1)
    return 0.1 * 100 * nn.KLDivLoss(reduction="none")(student.log_softmax(1), target).mean()


PEERS = {"paper": (paper, False), "Tf-KD reg": (peer, True)}


def test_every_conversion_is_checked():
    assert PEERS.keys() == TfKD.conversions.keys()


@pytest.mark.parametrize("name", PEERS)
def test_converted_weight_acts_as_the_peers(maps, name):
    student, labels, _ = maps
    labels = labels.clamp(0, 3)
    formula, parity = PEERS[name]
    weight = TfKD.conversions[name].at(K=4)
    torch.testing.assert_close(
        formula(student, labels), weight * tf_kd_loss(student, labels=labels, parity=parity)
    )


@pytest.mark.parametrize("parity", [False, True])
def test_entry_passes_its_options_on(maps, parity):
    student, labels, mask = maps
    labels = labels.masked_fill((labels < 0) | (labels > 3), 255)
    batch = Batch(torch.zeros(2, 3, 3, 5), labels, mask, torch.arange(2))
    options = {"temperature": 3.0, "target_probability": 0.8, "parity": parity}
    method = TfKD(TfKD.Config(**options, mask="not_padding"))
    term = method.loss(Outputs(student), None, batch, Context(batch, mask="not_padding"))["tf_kd"]
    assert term.value == tf_kd_loss(student, labels=labels, mask=mask, **options)
    assert term.count == (mask & (labels != 255)).sum()
