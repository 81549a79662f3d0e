import copy
import math
from dataclasses import replace

import pytest
import torch
from resuming import same, states, stop_after
from torch import nn
from toy_run import teacher_net, toy_config

from segkd.config.schema import RunConfig
from segkd.engine.run import train_run
from segkd.engine.setup import assemble
from segkd.engine.trainer import Trainer
from segkd.errors import ConfigError, Interrupted
from segkd.methods.base import BuildContext, TapInfo
from segkd.methods.cgan import CGAN, centred, cgan_loss
from segkd.modules.position_critic import PositionCritic
from segkd.runtime import Runtime
from segkd.testing.cases import make_case

F64 = torch.float64
K = 3


@pytest.fixture
def critic():
    torch.manual_seed(1)
    return PositionCritic(K, (6, 5), 1 + K).double()


@pytest.fixture
def maps():
    """Student, teacher, labels with void ones, and a mask that hides labelled pixels, too."""
    draw = torch.Generator().manual_seed(7)
    student, teacher = 2 * torch.randn(2, 2, K, 3, 5, generator=draw, dtype=F64)
    labels = torch.randint(K, (2, 3, 5), generator=draw)
    labels[0, 0, 0], labels[1, 2, 3], labels[1, 0, 1] = 255, -100, K
    mask = torch.rand(2, 3, 5, generator=draw) > 0.3
    mask[0, 0, 0] = mask[1, 2, 3] = mask[1, 0, 1] = True
    return student.requires_grad_(), teacher, labels, mask


# -- the equation ----------------------------------------------------------------------------------


def without_mean(logits):
    mean = sum(logits) / len(logits)
    return [z - mean for z in logits]


def chances(critic, logits):
    """D(teacher | z) and D(k | z) of one pixel."""
    first, *scores = critic(torch.tensor(logits, dtype=F64).view(1, -1, 1, 1)).flatten().tolist()
    powers = [math.exp(score) for score in scores]
    return 1 / (1 + math.exp(-first)), [power / sum(powers) for power in powers]


def mean(values):
    return sum(values) / len(values)


def reference(critic, student, teacher, labels, mask):
    """All expectations of the paper, pixel by pixel: those of the student, those of the critic."""
    l1, fools, named = [], [], []
    sees_student, sees_teacher, names_student, names_teacher = [], [], [], []
    with torch.no_grad():
        for b, y, x in mask.nonzero().tolist():
            z_s, z_t = (without_mean(z[b, :, y, x].tolist()) for z in (student, teacher))
            l1.append(sum(abs(s - t) for s, t in zip(z_s, z_t, strict=True)))
            (real_s, classes_s), (real_t, classes_t) = (chances(critic, z) for z in (z_s, z_t))
            fools.append(-math.log(real_s))
            sees_student.append(-math.log(1 - real_s))
            sees_teacher.append(-math.log(real_t))
            label = labels[b, y, x].item()
            if 0 <= label < K:
                named.append(-math.log(classes_s[label]))
                names_student.append(-math.log(classes_s[label]))
                names_teacher.append(-math.log(classes_t[label]))
    students = {"l1": mean(l1), "adversarial": mean(fools), "class": mean(named)}
    critics = {
        "student": mean(sees_student),
        "teacher": mean(sees_teacher),
        "class": mean(names_student) + mean(names_teacher),
    }
    return students, critics


def test_equals_the_equation(critic, maps):
    student, teacher, labels, mask = maps
    value = cgan_loss(student, teacher, critic=critic, labels=labels, mask=mask)
    terms, _ = reference(critic, *maps)
    expected = terms["l1"] + 0.5 * terms["adversarial"] + 0.5 * terms["class"]
    assert value.item() == pytest.approx(expected, rel=1e-12)
    bare = cgan_loss(student, teacher, critic=critic, mask=mask)
    assert bare.item() == pytest.approx(terms["l1"] + 0.5 * terms["adversarial"], rel=1e-12)


def test_gradient_is_right_and_reaches_the_student_alone(critic, maps):
    student, teacher, labels, mask = maps
    teacher.requires_grad_()
    keys = {"critic": critic, "labels": labels, "mask": mask}
    assert torch.autograd.gradcheck(lambda z: cgan_loss(z, teacher, **keys), student)
    cgan_loss(student, teacher, **keys).backward()
    assert student.grad.any() and teacher.grad is None
    assert all(parameter.grad is None for parameter in critic.parameters())


def test_without_a_mask_all_pixels_count(critic, maps):
    student, teacher, labels, mask = maps
    keys = {"critic": critic, "labels": labels}
    whole = cgan_loss(student, teacher, mask=torch.ones_like(mask), **keys)
    assert cgan_loss(student, teacher, **keys) == whole


def test_a_constant_that_no_softmax_sees_changes_nothing(critic, maps):
    student, teacher, labels, mask = maps
    keys = {"critic": critic, "labels": labels, "mask": mask}
    shift = torch.randn(2, 2, 1, 3, 5, dtype=F64)
    moved = cgan_loss(student + shift[0], (teacher + shift[1]).log_softmax(1), **keys)
    torch.testing.assert_close(moved, cgan_loss(student, teacher, **keys))


def test_nothing_valid_is_a_zero_with_a_graph(critic, maps):
    student, teacher, labels, mask = maps
    value = cgan_loss(student, teacher, critic=critic, labels=labels, mask=mask & False)
    value.backward()
    assert value == 0 and not student.grad.any()


def test_classes_that_the_teacher_cannot_know_are_left_out(maps):
    student, teacher, _, mask = maps
    # As a method receives them: log-probabilities over the known classes, -50 for the others.
    wide = [
        torch.cat([z[:, :1], torch.full_like(z[:, :2], -50.0), z[:, 1:]], 1).detach()
        for z in (student.log_softmax(1), teacher.log_softmax(1))
    ]
    found = centred(*wide, mask, unknown=(1, 2))
    for whole, few in zip(found, centred(student, teacher, mask), strict=True):
        torch.testing.assert_close(whole[:, [0, 3, 4]], few)
        assert not whole[:, 1:3].any()


# -- the method ------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [False, True])
def test_neither_side_sees_what_stands_for_unknown_classes(inner):
    """Whatever number stands there: neither the terms nor the critic depend on it."""
    found = []
    for low in (-50.0, -9.0):
        case = case_of()
        for outputs in (case.student, case.teacher):
            outputs.logits = outputs.logits.detach().clone()
            outputs.logits[:, 1] = low
        case.teacher = replace(case.teacher, unknown=(1,))
        found.append(case.inner_terms() if inner else case.terms())
    for name, term in found[0].items():
        torch.testing.assert_close(found[1][name].value, term.value)


def case_of(equal=True, **keys):
    return make_case(CGAN, config=CGAN.Config(width=5, **keys), equal=equal, dtype=F64)


def at_logits(case):
    """Logits, labels and mask at the size of the logits, as the reference takes them."""
    context = case.context(case.batch)
    size = case.student.logits.shape[-2:]
    return (
        case.student.logits.detach(),
        case.teacher.logits.detach(),
        context.labels_at(*size),
        context.mask_at(*size),
    )


def test_terms_of_student_and_critic_equal_the_equation(monkeypatch):
    case = case_of(critic_pixels=None)
    classes = case.student.logits.shape[1]
    monkeypatch.setitem(globals(), "K", classes)
    students, critics = reference(case.method.critic, *at_logits(case))
    for expected, found in ((students, case.terms()), (critics, case.inner_terms())):
        assert {name: term.value.item() for name, term in found.items()} == {
            name: pytest.approx(value, rel=1e-12) for name, value in expected.items()
        }
    mask, labels = at_logits(case)[3], at_logits(case)[2]
    assert case.terms()["l1"].count == case.terms()["adversarial"].count == mask.sum()
    assert case.terms()["class"].count == (mask & (labels != 255)).sum()


def test_the_function_is_the_sum_of_the_terms_with_their_default_weights():
    case = case_of()
    student, teacher, labels, mask = at_logits(case)
    value = cgan_loss(student, teacher, critic=case.method.critic, labels=labels, mask=mask)
    total = sum(CGAN.default_weights[name] * t.value for name, t in case.terms().items())
    torch.testing.assert_close(total, value)


def test_void_pixels_have_no_class_but_are_shown_if_asked_for():
    case = case_of(mask="not_padding")
    context = case.context(case.batch)
    labels = context.labels_at(*case.student.logits.shape[-2:])
    shown = context.mask_at(*labels.shape[1:])
    assert (shown & (labels == 255)).any()
    terms = case.terms()
    assert terms["adversarial"].count == shown.sum()
    assert terms["class"].count == (shown & (labels != 255)).sum() < shown.sum()


def test_the_students_step_leaves_nothing_in_the_critic_and_the_critics_nothing_in_the_student():
    case = case_of()
    sum(term.value for term in case.terms().values()).backward()
    assert case.student.logits.grad.any() and case.teacher.logits.grad is None
    assert all(p.grad is None for p in case.method.parameters())
    case.student.logits.grad = None
    sum(term.value for term in case.inner_terms().values()).backward()
    assert all(p.grad.any() for p in case.method.parameters())
    assert case.student.logits.grad is None and case.teacher.logits.grad is None


def test_the_critic_learns_from_random_valid_pixels_of_each_image():
    everything = case_of(critic_pixels=None).inner_terms()
    case = case_of(critic_pixels=7)
    few = case.inner_terms()
    mask = at_logits(case)[3]
    assert few["student"].count == mask.flatten(1).sum(1).clamp(max=7).sum()
    assert few["student"].value != everything["student"].value
    more = case_of(critic_pixels=10**6).inner_terms()
    for name, term in everything.items():
        torch.testing.assert_close(more[name].value, term.value)
        assert more[name].count == term.count
    drawn = []
    for number in range(300):
        case.method.name = f"draw {number}"
        drawn.append(case.inner_terms()["student"].value.item())
    share = mask.flatten(1).sum(1)
    assert len(set(drawn)) > 50 and len(set(share.tolist())) > 1
    per_image = [case.images(slice(i, i + 1)).with_config(critic_pixels=None) for i in range(4)]
    means = [one.inner_terms()["student"].value.item() for one in per_image]
    weights = share.clamp(max=7).tolist()
    expected = sum(m * w for m, w in zip(means, weights, strict=True)) / sum(weights)
    assert mean(drawn) == pytest.approx(expected, rel=0.02)


def test_without_the_term_of_classes_it_needs_no_labels():
    case = case_of(weights={"class": 0})
    assert not case.method.needs.labels and CGAN(CGAN.Config()).needs.labels
    found = case.with_batch(labels=None)
    assert found.terms().keys() == {"l1", "adversarial"}
    assert found.inner_terms().keys() == {"student", "teacher"}
    assert case.method.critic.layers[-1].out_channels == 1


def test_without_a_purpose_the_critic_is_refused():
    method = CGAN(CGAN.Config(weights={"adversarial": 0, "class": 0}))
    logits = {"logits": TapInfo(3, 8)}
    with pytest.raises(ConfigError, match=r"weights\.adversarial and weights\.class are both 0"):
        method.build(BuildContext(logits, logits, 3))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"width": 0}, "greater than 0"),
        ({"critic_steps": 0}, "greater than 0"),
        ({"critic_pixels": 0}, "greater than 0"),
        ({"critic_betas": [0.9, 1.0]}, "less than 1"),
        ({"critic_decay": -1}, "greater than or equal to 0"),
    ],
)
def test_bad_options_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        RunConfig.model_validate({"methods": {"cgan": keys}})


def test_options_reach_the_critics_optimiser():
    method = CGAN(CGAN.Config(critic_lr=0.5, critic_betas=(0.1, 0.2), critic_decay=0.3))
    found = method.inner_optimizer([nn.Parameter(torch.zeros(1))]).defaults
    assert (found["lr"], found["betas"], found["weight_decay"]) == (0.5, (0.1, 0.2), 0.3)


def test_the_published_weight_is_ours():
    """No public code: the function is the paper's expectation, and so are the terms' weights."""
    assert CGAN.conversions["the paper"].at() == CGAN(CGAN.Config(weight="paper")).weight == 1


# -- the game --------------------------------------------------------------------------------------


def train_critic(case, steps):
    optimizer = case.method.inner_optimizer(case.method.inner_parameters())
    for _ in range(steps):
        case.method.zero_grad()
        sum(term.value for term in case.inner_terms().values()).backward()
        optimizer.step()


def told_apart(case):
    terms = case.inner_terms()
    return (terms["student"].value + terms["teacher"].value).item()


def test_equal_logits_leave_the_critic_at_chance():
    case = case_of(critic_lr=0.01, critic_pixels=None)
    case.student.logits = case.teacher.logits.detach().clone().requires_grad_()
    train_critic(case, 200)
    assert told_apart(case) == pytest.approx(2 * math.log(2), abs=0.01)


def test_the_critic_learns_to_tell_a_student_and_the_student_to_deceive_it():
    case = case_of(critic_lr=0.02)
    case.teacher.logits = (4 * case.teacher.logits).detach()  # surer than the student
    before = case.terms()["adversarial"].value.item()
    train_critic(case, 150)
    assert told_apart(case) < 0.8 * 2 * math.log(2)
    learned = case.terms()["adversarial"].value.item()
    assert learned > before
    optimizer = torch.optim.Adam([case.student.logits], lr=0.3)
    for _ in range(20):
        optimizer.zero_grad()
        case.terms()["adversarial"].value.backward()
        optimizer.step()
    assert case.terms()["adversarial"].value < 0.7 * learned


def test_the_critic_teaches_the_student_its_labels():
    case = case_of(critic_lr=0.02)
    _, _, labels, mask = at_logits(case)
    known = mask & (labels != 255)
    truth = nn.functional.one_hot(labels.clamp(max=4), 5).movedim(-1, 1)
    case.teacher.logits = 5.0 * truth.double()
    train_critic(case, 200)
    optimizer = torch.optim.Adam([case.student.logits], lr=0.3)

    def right():
        return (case.student.logits.argmax(1) == labels)[known].double().mean().item()

    before = right()
    for _ in range(20):
        optimizer.zero_grad()
        case.terms()["class"].value.backward()
        optimizer.step()
    assert right() > before + 0.2


# -- whole runs ------------------------------------------------------------------------------------

ENTRIES = {"cgan": {"width": 4, "critic_steps": 2, "critic_pixels": 9}}


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, monkeypatch):
    whole, parts = (toy_config(tmp_path / name, methods=ENTRIES) for name in ("whole", "parts"))
    train_run(whole, teachers={"main": teacher_net()})
    stop_after(monkeypatch, 4)
    with pytest.raises(Interrupted):
        train_run(parts, teachers={"main": teacher_net()})
    monkeypatch.undo()
    train_run(parts, teachers={"main": teacher_net()})
    same(states(tmp_path / "parts"), states(tmp_path / "whole"))


def test_a_run_trains_the_critic_as_often_as_asked_and_logs_it(tmp_path):
    config = toy_config(tmp_path / "run", methods=ENTRIES)
    runtime = Runtime.single()
    parts = assemble(config, runtime, teachers={"main": teacher_net()})
    trainer = Trainer(config, parts, runtime)
    before = copy.deepcopy(trainer.methods["cgan"].state_dict())
    next(trainer.steps())
    states = trainer.own["cgan"].optimizer.state.values()
    assert {int(state["step"]) for state in states} == {2}
    after = trainer.methods["cgan"].state_dict()
    assert all(not torch.equal(after[name], value) for name, value in before.items())
    names = ("own_student", "own_teacher", "own_class", "l1", "adversarial", "class")
    assert {f"cgan/{name}" for name in names} <= set(trainer.terms)
