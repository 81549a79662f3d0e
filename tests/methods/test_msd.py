import math

import pytest
import torch
import torch.nn.functional as F

from segkd.methods.base import BuildContext, Context, TapInfo, TapNames
from segkd.methods.byot import BYOT
from segkd.methods.msd import MSD, msd_loss
from segkd.structures import Batch, Outputs, Term

F64 = torch.float64


def softmax(values, temperature):
    powers = [math.exp(value / temperature) for value in values]
    return [power / sum(powers) for power in powers]


def reference(classifiers, mask, temperature, teaching):
    """The equation, pixel by pixel: for each classifier the mean over its teachers."""
    total, places = 0.0, mask.nonzero().tolist()
    for learner, own in enumerate(classifiers):
        others = [logits for number, logits in enumerate(classifiers) if number != learner]
        if teaching == "deepest":
            others = [] if learner == len(classifiers) - 1 else others[-1:]
        for b, y, x in places:
            p = softmax(own[b, :, y, x].tolist(), temperature)
            targets = [softmax(logits[b, :, y, x].tolist(), temperature) for logits in others]
            if teaching == "ensemble":
                targets = [[sum(q) / len(q) for q in zip(*targets, strict=True)]]
            for q in targets:
                divergence = sum(t * math.log(t / s) for t, s in zip(q, p, strict=True))
                total += temperature**2 * divergence / len(targets) / len(places)
    return total


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(1)
    logits = [2 * torch.randn(2, 4, 3, 5, generator=draw, dtype=F64) for _ in range(4)]
    mask = torch.rand(2, 3, 5, generator=draw) > 0.3
    return [one.requires_grad_() for one in logits], mask


TEACHING = pytest.mark.parametrize("teaching", ["all", "deepest", "ensemble"])


@TEACHING
def test_equals_the_equation(maps, teaching):
    logits, mask = maps
    for temperature in (3.0, 1.0):
        options = {"mask": mask, "temperature": temperature, "teaching": teaching}
        found = msd_loss(logits[:-1], logits[-1], **options).item()
        expected = reference(logits, mask, temperature, teaching)
        assert found == pytest.approx(expected, rel=1e-12)
    full = reference(logits, torch.ones_like(mask), 3.0, teaching)
    found = msd_loss(logits[:-1], logits[-1], teaching=teaching).item()
    assert found == pytest.approx(full, rel=1e-12)


@TEACHING
def test_a_classifier_learns_from_constants(maps, teaching):
    """Its gradient is that of its own lessons with detached teachers: none comes from teaching."""
    logits, mask = maps
    msd_loss(logits[:-1], logits[-1], mask=mask, teaching=teaching).backward()
    for number, own in enumerate(logits):
        others = [one.detach() for place, one in enumerate(logits) if place != number]
        if teaching == "deepest":
            others = others[-1:] if number < 3 else []
        targets = [(one / 3).softmax(1) for one in others]
        if teaching == "ensemble":
            targets = [sum(targets) / 3]
        alone = own.detach().clone().requires_grad_()
        for target in targets:
            divergence = (target * (target.log() - (alone / 3).log_softmax(1))).sum(1)
            (9 * divergence[mask].mean() / len(targets)).backward()
        if targets:
            torch.testing.assert_close(own.grad, alone.grad)
        else:
            assert own.grad is None


def test_gradient_is_right(maps):
    (one, *_, deepest), mask = maps
    assert torch.autograd.gradcheck(
        lambda x: msd_loss([x], deepest, mask=mask, teaching="deepest"), one
    )


@TEACHING
def test_classifiers_that_agree_learn_nothing(maps, teaching):
    (logits, *_), mask = maps
    same = [logits.detach().clone().requires_grad_() for _ in range(4)]
    value = msd_loss(same[:-1], same[-1], mask=mask, teaching=teaching)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert all(one.grad is None or one.grad.abs().max() < 1e-12 for one in same)


def test_each_pair_is_compared_at_its_smaller_size():
    draw = torch.Generator().manual_seed(2)
    fine, coarse, end = (
        torch.randn(1, 3, *size, generator=draw, dtype=F64) for size in ((8, 8), (2, 2), (4, 4))
    )
    mask = torch.ones(1, 8, 8) > 0
    mask[:, :4] = False

    def at(maps, size):
        return F.adaptive_avg_pool2d(maps, size)

    expected = 0.0
    for one, other, size in ((fine, coarse, 2), (fine, end, 4), (coarse, end, 2)):
        pair = [at(one, size), at(other, size)]
        valid = mask[:, :: 8 // size, :: 8 // size]
        expected += reference(pair, valid, 3.0, "all") / 2
    found = msd_loss([fine, coarse], end, mask=mask)
    assert found.item() == pytest.approx(expected, rel=1e-12)
    all_small = [at(maps, 2) for maps in (fine, coarse, end)]
    together = msd_loss(all_small[:-1], all_small[-1], mask=mask, teaching="ensemble")
    found = msd_loss([fine, coarse], end, mask=mask, teaching="ensemble")
    torch.testing.assert_close(found, together)


@TEACHING
def test_saturated_classifiers_are_finite(teaching):
    logits = [
        torch.full((1, 3, 1, 1), -1e4).index_fill(1, torch.tensor([k]), 1e4) for k in range(3)
    ]
    logits = [one.requires_grad_() for one in logits]
    value = msd_loss(logits[:-1], logits[-1], teaching=teaching)
    value.backward()
    assert value.isfinite() and all(x.grad is None or x.grad.isfinite().all() for x in logits)


# -- the method ------------------------------------------------------------------------------------


def task_loss(outputs, batch):
    return {"mean": Term(outputs.logits.mean(), torch.tensor(1.0, dtype=F64))}


def make(kind=MSD, taps=("stage2", "stage4"), **options):
    torch.manual_seed(0)
    method = kind(kind.Config(taps=list(taps), **options))
    infos = {"stage2": TapInfo(3, 4), "stage4": TapInfo(5, 8), "head": TapInfo(6, 4)}
    method.build(BuildContext(infos | {"logits": TapInfo(4, 4)}, {}, 4))
    draw = torch.Generator().manual_seed(1)
    shapes = {"stage2": (3, 4, 4), "stage4": (5, 2, 2), "head": (6, 4, 4)}
    features = {tap: torch.randn(2, *shape, generator=draw) for tap, shape in shapes.items()}
    student = Outputs(torch.randn(2, 4, 4, 4, generator=draw), features)
    for tensor in student.tensors():
        tensor.requires_grad_()
    batch = Batch(
        torch.zeros(2, 3, 16, 16),
        torch.zeros(2, 16, 16, dtype=torch.int64),
        torch.ones(2, 16, 16) > 0,
        torch.arange(2),
    )
    return method, student, batch, Context(batch, task_loss=task_loss)


def weighted(method, terms, prefix):
    return sum(
        method.default_weights[name] * term.value
        for name, term in terms.items()
        if name.startswith(prefix)
    )


@TEACHING
def test_terms_are_the_pure_function_on_the_exits(teaching):
    method, student, batch, context = make(teaching=teaching)
    terms = method.loss(student, None, batch, context)
    exits = [
        branch(student.tap(tap), torch.ones(2, *student.tap(tap).shape[-2:]) > 0)[1]
        for tap, branch in zip(method.taps, method.exits, strict=True)
    ]
    expected = 0.1 * msd_loss(exits, student.logits, teaching=teaching)
    found = weighted(method, terms, "kd_stage") + 10 * weighted(method, terms, "kd_logits")
    torch.testing.assert_close(found, expected)
    sum(term.value for term in terms.values()).backward()
    assert student.tap("head").grad is None
    assert (student.logits.grad is not None) == (teaching != "deepest")
    assert set(method.taps_with_gradient) == {
        tap for tap in ("stage2", "stage4") if student.tap(tap).grad.any()
    } | ({"logits"} if teaching != "deepest" else set())


@TEACHING
def test_every_term_but_task_losses_has_a_default_weight(teaching):
    method, *step = make(teaching=teaching)
    terms = method.loss(step[0], None, *step[1:])
    assert set(method.default_weights) == {n for n in terms if not n.startswith("mean_")}
    names = {n for n in terms if n.startswith("kd_")}
    assert (
        names
        == {
            "all": {
                *("kd_stage2_stage4", "kd_stage2_logits", "kd_stage4_stage2"),
                *("kd_stage4_logits", "kd_logits_stage2", "kd_logits_stage4"),
            },
            "deepest": {"kd_stage2", "kd_stage4"},
            "ensemble": {"kd_stage2", "kd_stage4", "kd_logits"},
        }[teaching]
    )


def test_taught_by_the_deepest_alone_it_is_byot():
    found, student, batch, context = make(teaching="deepest")
    theirs, *_ = make(BYOT)
    ours, expected = (one.loss(student, None, batch, context) for one in (found, theirs))
    assert ours.keys() == expected.keys()
    for name, term in expected.items():
        assert torch.equal(ours[name].value, term.value) and ours[name].count == term.count
    assert found.default_weights == theirs.default_weights


def test_default_taps_are_those_of_the_network():
    method = MSD()
    assert method.default_weights == MSD.default_weights
    method.bind_taps(TapNames(("stage1", "stage2", "stage3", "head", "logits")), None)
    assert method.default_weights["kd_logits_stage1"] == pytest.approx(0.005)
    assert method.taps == ["stage1", "stage2"] and method.needs.labels
    assert method.default_weights["kd_stage1_logits"] == 0.05
