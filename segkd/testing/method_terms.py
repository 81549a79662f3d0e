"""Any method with any pair: what a loss returns, whom it teaches, and what a perfect student is."""

from collections.abc import Mapping

import torch
from torch import Tensor

from segkd.errors import SegKDError
from segkd.methods.base import IMAGE, Method, MethodConfig, Needs, TapNames
from segkd.methods.kd import KD
from segkd.structures import Term
from segkd.testing.cases import Case, backward, make_case
from segkd.testing.check import CheckList, NotApplicable, require, require_finds
from segkd.testing.method_subject import (
    F64,
    MethodSubject,
    exactly,
    gradient_at,
    leave_the_start,
    require_teacher,
    run,
    same,
    values,
)

CHECKS: CheckList[MethodSubject] = CheckList("method")

_FITTING = 8  # steps
_SHALLOW = ("stage2", "stage3", "stage4", "head", "logits")


@CHECKS.add(
    "`segkd explain` lists the keys with their descriptions, and a run saves its configuration "
    "and resumes from it. A misspelt key must be an error."
)
def declaration(subject: MethodSubject) -> None:
    """`name`, `kind`, `needs` and `Config` are defined; each key has a description; a configuration
    survives a round trip; unknown keys are an error."""
    kind, config = subject.kind, subject.config
    for attribute in ("name", "kind"):
        value = getattr(kind, attribute, None)
        require(isinstance(value, str) and value != "", f"class attribute `{attribute}`: {value!r}")
    require(isinstance(subject.unbuilt.needs, Needs), f"`needs` is a {type(subject.unbuilt.needs)}")
    require(issubclass(kind.Config, MethodConfig), "`Config` does not derive from MethodConfig")
    again = kind.Config.model_validate(config.model_dump())
    require(again == config, f"the configuration comes back as {again!r}, it was {config!r}")
    silent = [name for name, key in kind.Config.model_fields.items() if not key.description]
    require_finds(silent, "keys without a description")
    forbids = kind.Config.model_config.get("extra") == "forbid"
    require(forbids, "`Config` takes keys that it does not know")


@CHECKS.add(
    "The engine weighs, logs and reduces each term by its count. Anything else stops a training "
    "at its first step."
)
def terms(subject: MethodSubject) -> None:
    """`loss` returns Terms by name: finite 0-d values with a graph; a count is a positive float64
    0-d tensor without gradient, or None."""
    found = subject.case().terms()
    require(isinstance(found, dict) and bool(found), f"`loss` returned {found!r}")
    for name, term in found.items():
        require(isinstance(term, Term), f"term '{name}' is a {type(term).__name__}")
        value, count = term.value, term.count
        require(value.shape == (), f"the value of '{name}' has the shape {tuple(value.shape)}")
        require(bool(value.isfinite()), f"the value of '{name}' is {value.item()}")
        require(value.requires_grad, f"the value of '{name}' has no graph")
        if count is not None:
            fine = count.shape == () and count.dtype is F64 and not count.requires_grad
            require(fine and bool(count > 0), f"the count of '{name}' is {count!r}")


@CHECKS.add(
    "A declared tap without a gradient costs time and has no effect. A teacher with a gradient "
    "(a forgotten `detach`) costs its whole backward pass."
)
def who_is_taught(subject: MethodSubject) -> None:
    """The gradient is finite and non-zero at each tap in `taps_with_gradient` and at the logits of
    each peer, and there is none at the other taps and at the teacher."""
    case = subject.case()
    _, gradients = run(case)
    for tap in case.taps_with_gradient:
        gradient = gradient_at(gradients, tap)
        require(bool(gradient.any()), f"no gradient at '{tap}'")
        require(bool(gradient.isfinite().all()), f"the gradient at '{tap}' is not finite")
    for tap in set(case.method.needs.student) - set(case.taps_with_gradient):
        require(gradients[tap] is None, f"'{tap}' only teaches, but got a gradient")
    if case.teacher is not None and not case.method.needs.teacher_gradient:
        leaves = {"logits": case.teacher.logits, **case.teacher.features}
        got = [name for name, leaf in leaves.items() if leaf.is_leaf and leaf.grad is not None]
        require_finds(got, "taps of the teacher with a gradient")


@CHECKS.add(
    "Layers that no loss reaches keep their random weights, and the student is trained to match "
    "noise."
)
def parameters_learn(subject: MethodSubject) -> None:
    """Each parameter of the method gets a gradient from `loss`, or is an inner parameter, which
    `inner_loss` trains in `inner_steps` steps."""
    case = subject.case()
    leave_the_start(case.method)
    run(case)
    own = {id(parameter) for parameter in case.inner}
    steps = case.method.inner_steps
    require(bool(own) == (steps > 0), f"{len(own)} inner parameters, but inner_steps is {steps}")
    for name, parameter in case.method.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.any())
        require(id(parameter) in own or reached, f"no gradient for '{name}'")
    if own:
        case.method.zero_grad()
        backward(term.value for term in case.inner_terms().values())
        gradients = [p.grad for p in case.inner if p.grad is not None]
        require(len(gradients) == len(case.inner), "the inner loss misses inner parameters")
        require(all(bool(g.isfinite().all()) for g in gradients), "inner gradients are not finite")
        require(any(bool(g.any()) for g in gradients), "the inner gradients are all 0")


@CHECKS.add(
    "A distance with the wrong sign drives the student away from the teacher, while the loss "
    "curve falls as usual."
)
def never_negative(subject: MethodSubject) -> None:
    """No term is negative, whatever the weights of the method's layers: a term is a distance, or
    the negative logarithm of a probability."""
    case, draw = subject.case(dtype=F64), torch.Generator().manual_seed(6)
    for _ in range(4 if any(True for _ in case.method.parameters()) else 1):
        found = values(case.fresh())
        below = [f"{name} = {value.item():.4g}" for name, value in found.items() if value < -1e-9]
        require_finds(below, "terms below 0")
        with torch.no_grad():
            for parameter in case.method.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=F64))


@CHECKS.add(
    "The loss must be minimal where the student equals the teacher. With a wrong sign or wrongly "
    "paired taps the minimum is somewhere else."
)
def perfect_student(subject: MethodSubject) -> None:
    """A student with the outputs of its teacher has the smallest loss and no gradient. If the
    method has layers in between, they fit such a student better than another one."""
    case = subject.case(equal=True, channels=(4, 4), dtype=F64)
    require_teacher(case)
    needs = case.method.needs
    if len(needs.student) != len(needs.teacher):
        raise NotApplicable("taps of student and teacher do not correspond one to one")
    pairs = dict(zip(needs.student, needs.teacher, strict=True))
    if subject.own_layers:
        nearest, other = (_fitted(_near(case, pairs, distance)) for distance in (0.0, 2.0))
        text = f"after {_FITTING} steps of its layers the loss is {nearest:.6g} for the teacher's "
        require(nearest < other, text + f"own outputs and {other:.6g} for others")
        return
    perfect, at_perfect = run(_near(case, pairs, 0.0))
    for distance in (0.01, 0.3, 2.0):
        others, gradients = run(_near(case, pairs, distance))
        for name, value in others.items():
            text = f"{name} is {perfect[name].item():.6g} for the teacher's own outputs and "
            text += f"{value.item():.6g} at a distance of {distance} from them"
            require(bool(perfect[name] <= value + 1e-9), text)
        above = sum(others.values()) > sum(perfect.values())
        require(bool(above), f"the loss is not larger at a distance of {distance}")
    for tap in case.taps_with_gradient:
        left = gradient_at(at_perfect, tap).abs().max()
        usual = gradient_at(gradients, tap).abs().max()
        text = f"the gradient at '{tap}' is {left.item():.3g} there, {usual.item():.3g} elsewhere"
        require(bool(left <= 1e-3 * usual), text)


def _near(case: Case, pairs: Mapping[str, str], distance: float) -> Case:
    """The case whose student is the teacher, plus noise."""
    draw = torch.Generator().manual_seed(3)

    def beside(values: Tensor) -> Tensor:
        noise = torch.randn(values.shape, generator=draw, dtype=F64)
        return (values.detach() + distance * noise).requires_grad_()

    case = case.fresh()
    teacher = require_teacher(case)
    for mine, theirs in pairs.items():
        value = beside(teacher.tap(theirs))
        if mine == "logits":
            case.student.logits = value
        else:
            case.student.features[mine] = value
    return case


def _fitted(case: Case) -> float:
    """The loss after some steps of the method's layers, the outputs held fixed."""
    parameters = case.method.trained_parameters()
    if not parameters:
        raise NotApplicable("all of its layers learn by an inner loss")
    leave_the_start(case.method)
    optimizer = torch.optim.Adam(parameters, lr=0.03)
    for _ in range(_FITTING):
        optimizer.zero_grad()
        backward(term.value for term in case.terms().values())
        optimizer.step()
    return sum(value.item() for value in values(case).values())


@CHECKS.add(
    "Ensembles and black boxes only have log-probabilities. A method that accepts them must read "
    "them as the same distribution; a softmax over another axis than the classes does not."
)
def log_probabilities(subject: MethodSubject) -> None:
    """The teacher's log-probabilities give the same loss as its logits, if the method declares
    `accepts_log_prob`."""
    case = subject.case(dtype=F64)
    if not case.method.needs.accepts_log_prob:
        raise NotApplicable("declares that it does not take log-probabilities")
    require_teacher(case)
    expected = values(case)
    case = subject.case(dtype=F64)
    teacher = require_teacher(case)
    teacher.logits = teacher.logits.detach().log_softmax(1)
    teacher.kind = "log_prob"
    same(values(case), expected, "with log-probabilities", rtol=1e-6, atol=1e-9)


@CHECKS.add(
    "In a run with several methods, a method without a teacher is passed the teacher of the others."
)
def without_a_teacher(subject: MethodSubject) -> None:
    """A method that needs no teacher gives the same loss with and without one."""
    case = subject.case(dtype=F64)
    if case.method.needs.teacher:
        raise NotApplicable("it needs a teacher")
    expected = values(case)
    other = make_case(KD, dtype=F64).teacher
    exactly(values(subject.case(dtype=F64).fresh(teacher=other)), expected, "beside a teacher")


@CHECKS.add(
    "Networks differ in their stages: transformers have four, small networks three. Every method "
    "must run with its defaults on any pair."
)
def shallow_networks(subject: MethodSubject) -> None:
    """Default taps are replaced by taps that shallower networks have, or refused with a message
    that says what is missing."""
    method = subject.unbuilt
    student, teacher = TapNames(_SHALLOW), TapNames(("stage1", *_SHALLOW))
    try:
        method.bind_taps(student, teacher if method.needs.teacher else None)
    except SegKDError:
        return
    if type(method).bind_taps is Method.bind_taps and "stage5" in str(method.needs):
        raise AssertionError(
            f"taps {method.needs.student} and {method.needs.teacher} are asked of networks without "
            "a stage5: write `bind_taps` (segkd.methods.shared.tapped.TapListMethod has it)"
        )
    names = [{*network.names, IMAGE} for network in (student, teacher)]
    missing = [tap for tap in method.needs.student if tap.split(":")[0] not in names[0]]
    missing += [tap for tap in method.needs.teacher if tap.split(":")[0] not in names[1]]
    require_finds(missing, "taps that the networks do not have")
