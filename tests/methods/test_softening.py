"""`kd` and `dkd` with two temperatures (TTM), weights of pixels (WTTM) and z-scores (LSKD)."""

import math
import statistics

import pytest
import torch
import torch.nn.functional as F

from segkd.errors import ConfigError
from segkd.methods.base import BuildContext, Context, TapInfo
from segkd.methods.dkd import DKD, dkd_loss
from segkd.methods.kd import KD, kd_loss
from segkd.ops.known import restricted
from segkd.ops.standardize import power_sum, z_scores
from segkd.structures import Batch, Outputs
from segkd.testing import check_method

OPTIONS = [
    {"temperature": 4.0, "student_temperature": 1.0},
    {"temperature": 2.0, "student_temperature": 3.0},
    {"temperature": 2.0, "standardize": True},
    {"temperature": 3.0, "student_temperature": 1.5, "standardize": True},
]
WEIGHTED = [
    {"temperature": 4.0, "student_temperature": 1.0, "weighting": "smoothness"},
    {"temperature": 3.0, "weighting": "smoothness"},
    {"temperature": 2.0, "weighting": "smoothness", "standardize": True},
]


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(7)
    student, teacher = 2 * torch.randn(2, 2, 4, 3, 5, generator=draw, dtype=torch.float64)
    mask = torch.rand(2, 3, 5, generator=draw) > 0.3
    labels = torch.randint(4, (2, 3, 5), generator=draw)
    return student.requires_grad_(), teacher, mask, labels


def softmax(row, temperature):
    powers = [math.exp(z / temperature) for z in row]
    return [power / sum(powers) for power in powers]


def rows_of(logits, standardize):
    rows = logits.detach().movedim(1, -1).reshape(-1, logits.shape[1]).tolist()
    if not standardize:
        return rows
    return [[(z - statistics.mean(row)) / statistics.stdev(row) for z in row] for row in rows]


def divergence(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def kd_reference(student, teacher, mask, *, temperature, student_temperature=None, **options):
    """The equations of the module's docstring, pixel by pixel."""
    own, values = student_temperature or temperature, []
    standardize = options.get("standardize", False)
    pairs = zip(rows_of(student, standardize), rows_of(teacher, standardize), strict=True)
    for (row_s, row_t), valid in zip(pairs, mask.flatten().tolist(), strict=True):
        weight = 1.0
        if options.get("weighting") == "smoothness":
            weight = sum(p ** (1 / temperature) for p in softmax(row_t, 1.0))
        if valid:
            between = divergence(softmax(row_t, temperature), softmax(row_s, own))
            values.append(weight * own**2 * between)
    return sum(values) / len(values)


def dkd_reference(student, teacher, mask, labels, *, temperature, student_temperature=None, **keys):
    own, values = student_temperature or temperature, []
    pairs = [rows_of(z, keys.get("standardize", False)) for z in (student, teacher)]
    for row_s, row_t, valid, label in zip(*pairs, mask.flatten(), labels.flatten(), strict=True):
        if not valid:
            continue
        p_s, p_t = softmax(row_s, own)[label], softmax(row_t, temperature)[label]
        binary = divergence([p_t, 1 - p_t], [p_s, 1 - p_s])
        rest_s, rest_t = (row[:label] + row[label + 1 :] for row in (row_s, row_t))
        among = divergence(softmax(rest_t, temperature), softmax(rest_s, own))
        values.append(own**2 * (binary + 0.5 * among))
    return sum(values) / len(values)


@pytest.mark.parametrize("options", OPTIONS + WEIGHTED, ids=str)
def test_kd_equals_the_equation_and_its_gradient_is_right(maps, options):
    student, teacher, mask, _ = maps
    value = kd_loss(student, teacher, mask=mask, **options)
    assert value.item() == pytest.approx(kd_reference(student, teacher, mask, **options), rel=1e-6)
    assert torch.autograd.gradcheck(lambda z: kd_loss(z, teacher, mask=mask, **options), student)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_dkd_equals_the_equation_and_its_gradient_is_right(maps, options):
    student, teacher, mask, labels = maps

    def loss(logits):
        return dkd_loss(logits, teacher, labels=labels, mask=mask, **options)

    expected = dkd_reference(student, teacher, mask, labels, **options)
    assert loss(student).item() == pytest.approx(expected, rel=1e-6)
    assert torch.autograd.gradcheck(loss, student)


def test_the_factor_is_the_square_of_the_students_temperature(maps):
    """So the gradient in the student's logits is S · (p_s − p_t), whatever the teacher's T is."""
    student, teacher, _, _ = maps
    for own in (1.0, 3.0):
        for temperature in (1.0, 4.0):
            value = kd_loss(student, teacher, temperature=temperature, student_temperature=own)
            (found,) = torch.autograd.grad(value, student)
            difference = (student / own).softmax(1) - (teacher / temperature).softmax(1)
            torch.testing.assert_close(found, own * difference.detach() / 30)


def test_equal_temperatures_are_the_usual_loss_to_the_last_bit(maps):
    student, teacher, mask, labels = maps
    for function, keys in ((kd_loss, {}), (dkd_loss, {"labels": labels})):
        both = function(
            student, teacher, mask=mask, temperature=3.0, student_temperature=3.0, **keys
        )
        assert both == function(student, teacher, mask=mask, temperature=3.0, **keys)


def peer_ttm(student, teacher, power):
    """Powers of the teacher's probabilities, divided by their sum; and the sum."""
    powers = teacher.softmax(1) ** power
    total = powers.sum(1)
    rows = F.kl_div(student.log_softmax(1), powers / total[:, None], reduction="none").sum(1)
    return rows, total


def test_a_student_temperature_of_1_is_ttm_and_with_weights_wttm(maps):
    student, teacher, _, _ = maps
    keys = {"temperature": 5.0, "student_temperature": 1.0}
    rows, total = peer_ttm(student, teacher, 1 / 5)
    torch.testing.assert_close(kd_loss(student, teacher, **keys), rows.mean())
    weighted = kd_loss(student, teacher, weighting="smoothness", **keys)
    torch.testing.assert_close(weighted, (total * rows).mean())


def test_power_sums_lie_between_a_sure_teacher_and_an_even_one():
    sure, even = torch.zeros(1, 5, 1, 1), torch.zeros(1, 5, 1, 1)
    sure[0, 2] = 1e4
    assert power_sum(sure, 0.25).item() == pytest.approx(1)
    assert power_sum(even, 0.25).item() == pytest.approx(5**0.75)
    assert power_sum(torch.randn(1, 5, 2, 2), 1.0).allclose(torch.ones(1, 2, 2))
    assert power_sum(even, 0.25, (0, 4)).item() == pytest.approx(3**0.75)


def test_z_scores_of_log_probabilities_are_those_of_the_logits(maps):
    """A black box teaches the same: a row of logarithms is that of the logits less one number."""
    student, teacher, mask, labels = maps
    log_prob = teacher.log_softmax(1)
    torch.testing.assert_close(z_scores(log_prob), z_scores(teacher))
    torch.testing.assert_close(z_scores(3 * teacher + 7), z_scores(teacher), rtol=1e-6, atol=1e-6)
    for options in OPTIONS:
        for function, keys in ((kd_loss, {}), (dkd_loss, {"labels": labels})):
            found, expected = (
                function(student, theirs, mask=mask, **keys, **options)
                for theirs in (log_prob, teacher)
            )
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("options", OPTIONS + WEIGHTED, ids=str)
def test_unknown_classes_are_no_part_of_means_deviations_and_weights(maps, options):
    """The loss is that of the known classes alone, and the unknown one gets no gradient."""
    student, teacher, mask, labels = maps
    known, unknown, labels = [0, 2, 3], (1,), labels.masked_fill(labels == 1, 255)
    new_ids = torch.where(labels == 255, 255, (labels - 1).clamp(min=0))
    functions = [(kd_loss, {}, {})]
    if "weighting" not in options:
        functions.append((dkd_loss, {"labels": labels}, {"labels": new_ids}))
    for function, keys, fewer in functions:
        for theirs in (teacher, restricted(teacher, unknown)):  # the engine gives the latter
            value = function(student, theirs, mask=mask, unknown=unknown, **keys, **options)
            plain = function(student[:, known], teacher[:, known], mask=mask, **fewer, **options)
            torch.testing.assert_close(value, plain, rtol=2e-4, atol=0)
            (found,) = torch.autograd.grad(value, student)
            (expected,) = torch.autograd.grad(plain, student)
            torch.testing.assert_close(found, expected, rtol=2e-4, atol=1e-6)
            assert not found[:, 1].any()


@pytest.mark.parametrize("temperature", [1.0, 8.0, 20.0, 100.0])
def test_unknown_classes_have_no_share_at_any_temperature(maps, temperature):
    student, teacher, mask, _ = maps
    known, unknown = [0, 2, 3], (1,)
    value = kd_loss(student, teacher, mask=mask, unknown=unknown, temperature=temperature)
    few = (student[:, known], teacher[:, known])
    plain = kd_loss(*few, mask=mask, temperature=temperature)
    torch.testing.assert_close(value, plain, rtol=1e-8, atol=0)


def test_rows_without_a_deviation_are_0_without_a_gradient():
    for row in ([0.0] * 4, [1e4] * 4, [3.3] * 4):
        logits = torch.tensor(row).view(1, 4, 1, 1).requires_grad_()
        scores = z_scores(logits)
        scores.square().sum().backward()
        assert not scores.any() and not logits.grad.any()
    sure = torch.tensor([-torch.inf, 0.0, -torch.inf, -1.0]).view(1, 4, 1, 1)
    assert z_scores(sure).isfinite().all()
    half = z_scores(torch.randn(1, 4, 2, 2).bfloat16())
    assert half.dtype is torch.float32


def test_two_logits_have_one_pair_of_z_scores_and_no_gradient():
    rows = [[3.0, -1.0, 0.0, 2.0], [-4.0, 5.0, 1.0, 2.5]]
    logits = torch.tensor(rows, dtype=torch.float64).view(1, 2, 2, 2).requires_grad_()
    scores = z_scores(logits)
    torch.testing.assert_close(scores.abs(), torch.full_like(scores, 0.5**0.5), rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(scores[:, 0].sum(), logits)
    assert gradient.abs().max() < 1e-5


@pytest.mark.parametrize("kind", [KD, DKD])
def test_two_classes_are_refused(kind):
    taps = {"logits": TapInfo(2, 8)}
    method = kind(kind.Config(standardize=True))
    with pytest.raises(ConfigError, match=r"three classes, and got 2 classes.*Remove `standard"):
        method.build(BuildContext(taps, taps, 2))
    method.build(BuildContext(taps, taps, 3))
    kind().build(BuildContext(taps, taps, 2))
    inside = torch.ones(1, 2, 2, dtype=torch.bool)
    batch = Batch(torch.zeros(1, 3, 2, 2), inside.long(), inside, torch.arange(1))
    student, teacher = torch.randn(2, 1, 4, 2, 2).unbind()
    told = Outputs(teacher, kind="log_prob", unknown=(0, 3))
    with pytest.raises(ConfigError, match="the teacher knows 2 of the classes"):
        method.loss(Outputs(student), told, batch, Context(batch))


@pytest.mark.parametrize("kind", [KD, DKD])
def test_entries_pass_their_keys_on(maps, kind):
    student, teacher, mask, labels = maps
    batch = Batch(torch.zeros(2, 3, 3, 5), labels, mask, torch.arange(2))
    unknown = (1,) if kind is KD else ()
    for options in OPTIONS + (WEIGHTED if kind is KD else []):
        method = kind(kind.Config(**options))
        sides = Outputs(student), Outputs(restricted(teacher, unknown), unknown=unknown)
        terms = method.loss(*sides, batch, Context(batch))
        total = sum(kind.default_weights.get(n, 1) * term.value for n, term in terms.items())
        if kind is KD:
            expected = kd_loss(student, teacher, mask=mask, unknown=unknown, **options)
        else:
            expected = dkd_loss(student, teacher, labels=labels, mask=mask, **options)
        torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[2], WEIGHTED[0]], ids=str)
def test_the_promises_hold_with_the_new_keys(options):
    skip = {
        "perfect_student": "two temperatures: the best student has other logits than the teacher"
    }
    skip = skip if "student_temperature" in options else {}
    check_method(KD, options, skip=skip)
    if "weighting" not in options:
        check_method(DKD, options, skip=skip)
