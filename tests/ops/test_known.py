"""Distributions over the classes that a teacher knows, against loops."""

import math

import pytest
import torch

from segkd.methods.kd import kd_loss
from segkd.methods.unix import unix_loss
from segkd.methods.wsld import wsld_loss
from segkd.ops.known import of_unknown, restricted

UNKNOWN = (1, 4)


def test_it_is_the_distribution_over_the_known_classes():
    logits = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    found = restricted(logits, UNKNOWN).exp()
    for b in range(2):
        for i in range(3):
            for j in range(4):
                powers = [math.exp(float(z)) for z in logits[b, :, i, j]]
                total = sum(power for k, power in enumerate(powers) if k not in UNKNOWN)
                for k, power in enumerate(powers):
                    expected = 0 if k in UNKNOWN else power / total
                    assert abs(float(found[b, k, i, j]) - expected) < 1e-12
    assert restricted(logits, ()) is logits


def test_the_divergence_is_that_of_the_known_classes_and_pulls_no_other():
    torch.manual_seed(0)
    student = torch.randn(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    known = [0, 2, 3]
    for temperature in (1.0, 4.0):
        value = kd_loss(
            restricted(student, UNKNOWN), restricted(teacher, UNKNOWN), temperature=temperature
        )
        (gradient,) = torch.autograd.grad(value, student)
        plain = kd_loss(student[:, known], teacher[:, known], temperature=temperature)
        (expected,) = torch.autograd.grad(plain, student)
        torch.testing.assert_close(value, plain, rtol=1e-4, atol=0)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
        assert not gradient[:, list(UNKNOWN)].any() and gradient[:, known].all()


@pytest.mark.parametrize("temperature", [1.0, 8.0, 20.0, 100.0])
@pytest.mark.parametrize("function", [kd_loss, unix_loss, wsld_loss])
def test_excluded_classes_have_no_share_at_any_temperature(function, temperature):
    """As the engine passes them on: to methods that are told of no unknown class, too."""
    torch.manual_seed(1)
    student = torch.randn(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    known, labels = [0, 2, 3], torch.randint(3, (2, 3, 4))
    wide = {"labels": torch.tensor(known)[labels]} if function is wsld_loss else {}
    few = {"labels": labels} if function is wsld_loss else {}
    both = restricted(student, UNKNOWN), restricted(teacher, UNKNOWN)
    value = function(*both, temperature=temperature, **wide)
    plain = function(student[:, known], teacher[:, known], temperature=temperature, **few)
    torch.testing.assert_close(value, plain, rtol=1e-9, atol=0)
    (found,) = torch.autograd.grad(value, student)
    (expected,) = torch.autograd.grad(plain, student)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


def test_half_precision_and_saturated_logits_stay_finite():
    logits = torch.tensor([6e4, 0.0, -6e4]).half().view(1, 3, 1, 1).requires_grad_()
    found = restricted(logits, (0,))
    assert found.dtype == torch.float32 and found.isfinite().all()
    found.softmax(1).sum().backward()
    assert logits.grad.isfinite().all()


def test_classes_that_are_unknown():
    classes = torch.tensor([[0, 1, 4, 5, 255, -1]])
    assert of_unknown(classes, UNKNOWN).tolist() == [[False, True, True, False, False, False]]


def test_a_first_call_in_inference_mode_spoils_no_later_training():
    """The mask of classes is kept from one call to the next."""
    unknown = (0, 5)  # of no other test
    with torch.inference_mode():
        restricted(torch.randn(1, 7, 2, 2), unknown)
    logits = torch.randn(1, 7, 2, 2, requires_grad=True)
    restricted(logits, unknown)[:, 1].sum().backward()
    assert logits.grad[:, 1].any() and not logits.grad[:, list(unknown)].any()
