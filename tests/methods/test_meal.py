import itertools
import math
from typing import ClassVar

import pytest
import torch
from pydantic import Field
from resuming import make_trainer, same, states, stop_after
from torch import nn
from toy_run import teacher_net, toy_config

from segkd.engine.run import train_run
from segkd.engine.step_record import StepRecord, seen_by
from segkd.errors import ConfigError, Interrupted
from segkd.methods.base import BuildContext, TapInfo, TapNames
from segkd.methods.meal import MEAL, meal_loss
from segkd.models.box_outputs import with_tail
from segkd.modules.position_critic import PositionCritic
from segkd.structures import Batch, Outputs
from segkd.testing.cases import make_case
from segkd.testing.processes import on_two_processes

F64 = torch.float64
GRID = (2, 3)


@pytest.fixture
def critic():
    torch.manual_seed(1)
    return PositionCritic(3, (6, 5)).double()


@pytest.fixture
def maps():
    """Student, teacher, and a mask that leaves nothing of the second image and of one cell."""
    draw = torch.Generator().manual_seed(7)
    student, teacher = torch.randn(2, 3, 3, 4, 6, generator=draw, dtype=F64)
    mask = torch.rand(3, 4, 6, generator=draw) > 0.3
    mask[1] = False
    mask[2, :2, 2:4] = False
    return student.requires_grad_(), teacher, mask


# -- the equation ----------------------------------------------------------------------------------


def cells_of(image, valid):
    """The means of the valid positions of 2x2 windows, by cell."""
    found = {}
    for y in (0, 2):
        for x in (0, 2, 4):
            places = [(i, j) for i in (y, y + 1) for j in (x, x + 1) if valid[i, j]]
            if places:
                found[y, x] = sum(image[:, i, j] for i, j in places) / len(places)
    return found


def reference(critic, student, teacher, mask):
    """KL(q_t ‖ q_s) by image, and −log D(f_s) by cell."""
    divergences, deceived = [], []
    for s, t, valid in zip(student, teacher, mask, strict=True):
        if not valid.any():
            continue
        cells = cells_of(s, valid), cells_of(t, valid)
        numbers = [[v for cell in one.values() for v in cell.tolist()] for one in cells]
        sums = [sum(math.exp(v) for v in one) for one in numbers]
        q_s, q_t = ([math.exp(v) / z for v in n] for n, z in zip(numbers, sums, strict=True))
        divergences.append(sum(b * math.log(b / a) for a, b in zip(q_s, q_t, strict=True)))
        for cell in cells[0].values():
            score = critic(cell.view(1, -1, 1, 1)).item()
            deceived.append(-math.log(1 / (1 + math.exp(-score))))
    return mean(divergences), mean(deceived)


def mean(values):
    return sum(values) / len(values)


def test_equals_the_equation(critic, maps):
    student, teacher, mask = maps
    similar, deceived = reference(critic, student.detach(), teacher, mask)
    value = meal_loss(student, teacher, mask=mask, grid=GRID)
    assert value.item() == pytest.approx(similar, rel=1e-12)
    value = meal_loss(student, teacher, critic=critic, mask=mask, grid=GRID)
    assert value.item() == pytest.approx(similar + deceived, rel=1e-12)


def test_gradient_is_right_and_reaches_the_student_alone(critic, maps):
    student, teacher, mask = maps
    teacher.requires_grad_()
    keys = {"critic": critic, "mask": mask, "grid": GRID}
    assert torch.autograd.gradcheck(lambda s: meal_loss(s, teacher, **keys), student)
    meal_loss(student, teacher, **keys).backward()
    assert student.grad.any() and teacher.grad is None
    assert all(parameter.grad is None for parameter in critic.parameters())


def test_maps_of_unequal_size_have_the_same_cells(maps):
    student, teacher, _ = maps
    larger = teacher.repeat_interleave(2, 2).repeat_interleave(2, 3)
    value = meal_loss(student, larger, grid=(3, 4))
    torch.testing.assert_close(value, meal_loss(student, teacher, grid=(3, 4)))


def test_the_teachers_own_features_are_the_minimum(maps):
    _, teacher, mask = maps
    student = teacher.clone().requires_grad_()
    value = meal_loss(student, teacher, mask=mask)
    value.backward()
    assert abs(value.item()) < 1e-12 and student.grad.abs().max() < 1e-12


def test_nothing_valid_is_a_zero_with_a_graph(critic, maps):
    student, teacher, mask = maps
    value = meal_loss(student, teacher, critic=critic, mask=mask & False)
    value.backward()
    assert value == 0 and not student.grad.any()


# -- the method ------------------------------------------------------------------------------------


def case_of(**keys):
    return make_case(MEAL, config=MEAL.Config(**{"grid": GRID, **keys}), equal=True, dtype=F64)


def test_terms_are_the_function_on_aligned_features_in_the_teachers_unit():
    case = case_of(taps=["stage4"])
    (side,) = case.method.sides
    with torch.no_grad():
        side.adapters[0].weight.mul_(50)  # of a hundredth at the start
    terms = case.terms()
    assert list(terms) == ["kd", "similarity_stage4", "adversarial_stage4", "adversarial_logits"]
    mask = case.context(case.batch).mask_at(8, 12)
    target = case.teacher.features["stage4"].detach()
    unit = target.movedim(1, -1)[mask].square().mean().sqrt()
    aligned = side.adapters[0](case.student.features["stage4"]) / unit
    keys = {"mask": mask, "grid": GRID}
    alike = meal_loss(aligned, target / unit, **keys)
    torch.testing.assert_close(terms["similarity_stage4"].value, alike)
    both = meal_loss(aligned, target / unit, critic=side.critics[0], **keys)
    torch.testing.assert_close(terms["adversarial_stage4"].value, both - alike)
    own, other = (o.logits.detach().softmax(1) for o in (case.student, case.teacher))
    values = [meal_loss(own, other, critic=one, **keys) for one in (side.critics[1], None)]
    torch.testing.assert_close(
        terms["adversarial_logits"].value, values[0] - values[1], check_dtype=False
    )
    divergence = (other * (other.log() - own.log())).sum(1)[mask].mean()
    torch.testing.assert_close(terms["kd"].value, divergence)
    assert terms["kd"].count == mask.sum()
    assert terms["similarity_stage4"].count == len(case.batch)


def test_critics_minimise_what_the_equation_says():
    case = case_of(taps=["stage4"])
    terms = case.inner_terms()
    assert list(terms) == ["stage4", "logits"]
    (side,) = case.method.sides
    context = case.context(case.batch)
    stages = side(case.student.detach(), case.teacher.detach(), context)
    for stage in stages:
        values = []
        for b, y, x in stage.keep.nonzero().tolist():
            own, other = (
                stage.critic(part[b : b + 1, :, y : y + 1, x : x + 1]).item()
                for part in (stage.student, stage.teacher)
            )
            chances = [1 / (1 + math.exp(-score)) for score in (own, other)]
            values.append(-math.log(1 - chances[0]) - math.log(chances[1]))
        assert terms[stage.tap].value.item() == pytest.approx(mean(values), rel=1e-9)
        assert terms[stage.tap].count == len(values)


def test_the_student_learns_against_the_critic_and_the_critic_against_the_student():
    """Not as in the public code, where both minimise the same loss."""
    case = case_of(taps=["stage4"])
    sum(term.value for term in case.terms().values()).backward()
    (side,) = case.method.sides
    assert all(p.grad is None for p in case.method.inner_parameters())
    assert side.adapters[0].weight.grad.any() and case.student.features["stage4"].grad.any()
    case.method.zero_grad()
    case.student.logits.grad = None
    sum(term.value for term in case.inner_terms().values()).backward()
    assert all(p.grad.any() for p in case.method.inner_parameters())
    assert case.student.logits.grad is None
    assert side.adapters[0].weight.grad is None or not side.adapters[0].weight.grad.any()
    trained, inner = case.method.trained_parameters(), case.method.inner_parameters()
    assert len(trained) == 1 and len(trained) + len(inner) == len(list(case.method.parameters()))


def test_critics_learn_to_tell_and_the_student_to_deceive():
    case = case_of(taps=[], critic_lr=0.02, grid=(8, 12))
    case.teacher.logits = (4 * case.teacher.logits).detach()
    optimizer = case.method.inner_optimizer(case.method.inner_parameters())
    for _ in range(150):
        case.method.zero_grad()
        case.inner_terms()["logits"].value.backward()
        optimizer.step()
    assert case.inner_terms()["logits"].value < 0.8 * 2 * math.log(2)
    learned = case.terms()["adversarial_logits"].value.item()
    optimizer = torch.optim.Adam([case.student.logits], lr=0.3)
    for _ in range(20):
        optimizer.zero_grad()
        case.terms()["adversarial_logits"].value.backward()
        optimizer.step()
    assert case.terms()["adversarial_logits"].value < 0.7 * learned


def test_without_stages_any_teacher_will_do():
    method = MEAL(MEAL.Config(taps=[]))
    assert method.needs.student == method.needs.teacher == ("logits",)
    assert method.needs.accepts_log_prob
    assert method.default_weights == {"kd": 1, "adversarial_logits": 0.1}


def test_the_published_weights_are_ours():
    """MEAL's soft cross-entropy has the gradient of our KL, at the output and at each stage."""
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 3, 2, 3, generator=draw, dtype=F64)
    student.requires_grad_()
    ours = MEAL.conversions["MEAL"].at() * meal_loss(student, teacher, grid=GRID)
    rows = student.flatten(1).log_softmax(1), teacher.flatten(1).softmax(1)
    theirs = -(rows[0] * rows[1]).sum(1).mean()
    (found,), (expected,) = (torch.autograd.grad(v, student) for v in (ours, theirs))
    torch.testing.assert_close(found, expected)
    assert MEAL.conversions.keys() == {"MEAL"}


# -- several teachers ------------------------------------------------------------------------------


def two(**keys):
    """A trainer with two teachers of unequal channels."""
    return {"methods": {"meal": {"teachers": ["one", "other"], "grid": GRID, **keys}}}


def nets():
    return {"one": teacher_net(8, 1), "other": teacher_net(5, 2)}


def drawn_numbers(trainer, steps=200):
    """The teacher of each step, as all processes draw it."""
    objective, found = trainer.objective, []
    batch = trainer._placed(next(iter(trainer._loader(0, 1, workers=0))))
    method = trainer.methods["meal"]
    outputs = trainer.parts.teachers(batch.images)
    for step in range(steps):
        context = objective.context("meal", batch, step, teachers=outputs)
        side, teacher = method._drawn(outputs["one"], context)
        number = list(method.sides).index(side)
        assert teacher is outputs[["one", "other"][number]]
        critics = objective.context("meal", batch, step, "own0", teachers=outputs)
        assert method._drawn(outputs["one"], critics)[0] is side  # they learn from that teacher
        found.append(number)
    return found


def test_one_of_the_teachers_is_drawn_for_each_step(tmp_path):
    trainer = make_trainer(toy_config(tmp_path / "run", **two()), teachers=nets())
    drawn = drawn_numbers(trainer)
    assert 70 < sum(drawn) < 130
    again = sum(one == other for one, other in itertools.pairwise(drawn))
    assert 70 < again < 130  # they do not take turns
    assert drawn_numbers(trainer) == drawn  # nothing but seed, step and entry decides
    widths = [side.critics[0].layers[0].in_channels for side in trainer.methods["meal"].sides]
    assert widths == [8, 5]


def test_parts_of_the_other_teacher_get_gradients_of_zero_and_none_is_frozen(tmp_path):
    trainer = make_trainer(toy_config(tmp_path / "run", **two()), teachers=nets())
    assert not [name for name in trainer.frozen if "meal" in name]
    method = trainer.methods["meal"]
    batch = trainer._placed(next(iter(trainer._loader(0, 1, workers=0))))
    teachers = trainer.parts.teachers(batch.images)
    for step, number in enumerate(drawn_numbers(trainer, 8)):
        outputs = trainer.student(batch.images, taps=trainer.parts.taps)
        context = trainer.objective.context("meal", batch, step, teachers=teachers)
        terms = method.loss(outputs, teachers["one"], batch, context)
        method.zero_grad()
        sum(term.value for term in terms.values()).backward()
        reached = [
            [bool(p.grad.any()) for p in side.adapters.parameters()] for side in method.sides
        ]
        assert all(reached[number]) and not any(reached[1 - number])


def test_a_resumed_run_with_two_teachers_equals_the_uninterrupted_one(tmp_path, monkeypatch):
    keys = {**two(), "optim": {"name": "adamw", "lr": 0.01}}
    whole, parts = (toy_config(tmp_path / name, **keys) for name in ("whole", "parts"))
    train_run(whole, teachers=nets())
    stop_after(monkeypatch, 4)
    with pytest.raises(Interrupted):
        train_run(parts, teachers=nets())
    monkeypatch.undo()
    train_run(parts, teachers=nets())
    same(states(tmp_path / "parts"), states(tmp_path / "whole"))


class TwoTeachers(MEAL):
    """The second teacher is the first with other features, for a check without an engine."""

    class Config(MEAL.Config):
        taps: list[str] | None = Field(["stage4"])
        teachers: list[str] = Field(["one", "other"])
        grid: tuple[int, int] = GRID

    def build(self, spec: BuildContext) -> None:
        super().build(BuildContext(**{**vars(spec), "further": {"other": spec.teacher}}))

    def _drawn(self, teacher, context):
        context.teachers = {"other": teacher.map(lambda x: 0.5 * x)}
        return super()._drawn(teacher, context)


def test_two_processes_draw_the_same_and_sum_up_to_one():
    case = make_case(TwoTeachers, config=TwoTeachers.Config(), dtype=F64)
    alone = {name: term.value.item() for name, term in case.terms().items()}

    def share(runtime):
        part = case.images(slice(2 * runtime.rank, 2 * runtime.rank + 2)).fresh(runtime=runtime)
        side, _ = part.method._drawn(part.teacher, part.context(part.batch))
        return list(part.method.sides).index(side), part.terms()

    (first, terms), (second, others) = on_two_processes(share)
    assert first == second
    for name, value in alone.items():
        counts = [one[name].count for one in (terms, others)]
        values = [one[name].value for one in (terms, others)]
        joint = sum(c * v for c, v in zip(counts, values, strict=True)) / sum(counts)
        assert joint.item() == pytest.approx(value, rel=1e-9)


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"teachers": ["a", "a"]}, "Name each teacher once"),
        ({"teachers": ["a", "b"], "teacher": "b"}, "omit `teacher`"),
        ({"taps": ["stage4", "stage4"]}, "no duplicates"),
        ({"grid": [0, 3]}, "greater than 0"),
        ({"critic_steps": 0}, "greater than 0"),
        ({"critic_betas": [1.0, 0.9]}, "less than 1"),
    ],
)
def test_bad_options_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        MEAL(MEAL.Config.model_validate(keys))


def test_an_unknown_teacher_is_named(tmp_path):
    config = toy_config(tmp_path / "run", methods={"meal": {"teachers": ["one", "othr"]}})
    with pytest.raises(ConfigError, match=r"methods\.meal: there is no teacher 'othr'.*other"):
        make_trainer(config, teachers=nets())


def test_teachers_of_other_depth_are_refused_with_what_to_name():
    method = MEAL(MEAL.Config(teachers=["deep", "flat"]))
    deep = TapNames(("stage3", "stage4", "stage5", "logits"))
    method.bind_taps(deep, deep)
    with pytest.raises(ConfigError, match=r"stage4, stage5 from 'flat'.*Name those .* in `taps`"):
        method.bind_further("flat", deep, TapNames(("stage1", "stage2", "logits")))


def test_options_reach_the_critics_and_their_optimiser():
    method = MEAL(MEAL.Config(critic_lr=0.5, critic_betas=(0.1, 0.2), critic_steps=3, taps=[]))
    logits = {"logits": TapInfo(40, 8)}
    method.build(BuildContext(logits, logits, 40))
    layers = [m for m in method.sides[0].critics[0].layers if isinstance(m, nn.Conv2d)]
    assert [layer.out_channels for layer in layers] == [20, 10, 1] and method.inner_steps == 3
    found = method.inner_optimizer(method.inner_parameters()).defaults
    assert (found["lr"], found["betas"]) == (0.5, (0.1, 0.2))


def test_what_a_further_teacher_leaves_open_is_filled_in_or_left_out():
    """Any of the teachers may be the one of a step, so each is taken as one alone would be."""

    class Both(MEAL):
        further_teachers: ClassVar = {"second": ("logits",)}

    draw = torch.Generator().manual_seed(0)
    own, first, second = torch.randn(3, 1, 4, 2, 2, generator=draw)
    tail = torch.zeros(1, 4, 2, 2)
    tail[:, :2] = 0.1
    halves = torch.tensor([[[True, True], [False, True]]])
    others = torch.tensor([[[True, False], [True, True]]])
    shares = second.softmax(1).log()
    box = Outputs(shares, kind="log_prob", known=halves, tail=tail)
    record = StepRecord(
        Outputs(own),
        {"main": Outputs(first, known=others), "second": box},
        Batch(
            torch.zeros(1, 3, 2, 2), None, torch.ones(1, 2, 2, dtype=torch.bool), torch.arange(1)
        ),
    )
    seen = seen_by(Both(MEAL.Config(teacher="main")), record, record.student)
    assert torch.equal(seen.batch.valid, halves & others)
    assert seen.teachers["second"].tail is None
    assert torch.equal(seen.teachers["second"].logits, with_tail(box, record.student).logits)
