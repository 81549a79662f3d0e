"""fp16: scaled gradients, steps that are left out, and the same numbers after a resume."""

import pytest
import torch
from resuming import make_trainer, same, states, stop_after
from torch import nn
from toy_run import teacher_net, toy_config

from segkd.engine.run import train_run
from segkd.engine.stepper import Stepper
from segkd.errors import Interrupted, TrainingError
from segkd.runtime import Runtime

HOOKS = {"kd": {}, "toy_critic": {}, "toy_bank": {}, "toy_self": {}}
FP16 = {"device": "cpu", "threads": 1, "precision": "fp16"}


def stepper(weight, scale=2.0**10, half=torch.float16):
    scaler = Runtime.single(half=half).grad_scaler()
    if half is torch.float16:
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)
    return Stepper(torch.optim.SGD([weight], 1.0), scaler, "the student")


def test_a_scaled_step_is_the_plain_step():
    moved = []
    for half in (None, torch.float16):
        weight = nn.Parameter(torch.tensor([3.0, -1.0]))
        one = stepper(weight, half=half)
        one.backward(weight.square().sum())
        assert one.step() and weight.grad is None
        moved.append(weight.detach())
    assert torch.equal(moved[0], moved[1]) and torch.equal(moved[0], torch.tensor([-3.0, 1.0]))


def test_gradients_that_fp16_would_lose_arrive():
    weight = nn.Parameter(torch.ones(1))

    def gradient(scale):
        one = stepper(weight, scale)
        one.backward((weight.half() * 2.0**-26).float().sum())
        found = weight.grad / scale
        weight.grad = None
        return found.item()

    assert gradient(1.0) == 0.0 and gradient(2.0**10) == 2.0**-26


def test_the_norm_is_clipped_as_it_is_without_a_scale():
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    one = stepper(weight)
    one.backward((weight * torch.tensor([6.0, 8.0])).sum())
    assert one.step(clip=5.0)
    torch.testing.assert_close(weight.detach(), torch.tensor([0.0, 0.0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("clip", [None, 1.0])
def test_steps_in_which_nothing_teaches_the_student_yet_change_nothing(clip):
    weight = nn.Parameter(torch.ones(2))
    one = stepper(weight)
    assert one.step(clip) and torch.equal(weight.detach(), torch.ones(2))
    one.backward(weight.sum())
    assert one.step(clip) and not torch.equal(weight.detach(), torch.ones(2))


def test_a_peer_learns_where_nothing_of_the_student_is_trained():
    weight = nn.Parameter(torch.ones(2))
    peer = torch.optim.SGD([weight], 1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    empty = torch.optim.SGD([{"params": []}], 1.0)
    one = Stepper(empty, scaler, "the student", [peer])
    one.backward(weight.sum())
    assert one.step(1.0) and (weight.detach() < 1).all()


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_run_in_fp16_whose_only_teaching_method_begins_later(tmp_path, clip):
    changes = {
        "teachers": {"main": {"arch": "toy", "options": {"width": 8}}},
        "methods": {"fitnets": {"start": 2}},
        "task": {"weight": 0.0},
        "train": ["methods.*"],
        "optim": {"lr": 0.05, "clip": clip},
        "runtime": FP16,
    }
    assert train_run(toy_config(tmp_path / "run", **changes))["steps"] == 6


@pytest.mark.parametrize("clip", [None, 1.0])
def test_an_overflow_leaves_the_step_out_and_halves_the_scale(clip):
    weight = nn.Parameter(torch.ones(2))
    one = stepper(weight)
    one.backward(weight.sum() * float("inf"))
    assert not one.step(clip)
    assert weight.tolist() == [1.0, 1.0] and one.skipped_steps == 1
    assert one.scaler.get_scale() == 2.0**9
    for _ in range(2):  # the growth interval of this test
        one.backward(weight.sum())
        assert one.step(clip)
    assert one.scaler.get_scale() == 2.0**10


def test_what_overflows_at_every_scale_ends_with_a_message():
    weight = nn.Parameter(torch.ones(1))
    one = stepper(weight, 2.0**-13)
    one.backward(weight.sum() * float("inf"))
    one.step()
    one.backward(weight.sum() * float("nan"))
    with pytest.raises(TrainingError, match=r"of the student overflow.*precision=bf16"):
        one.step()


def test_the_scale_is_a_part_of_the_state():
    weight = nn.Parameter(torch.ones(1))
    one, other = stepper(weight), stepper(weight)
    one.backward(weight.sum() * float("inf"))
    one.step()
    one.backward(weight.sum())
    one.step()
    other.load_state_dict(one.state_dict())
    assert other.state_dict() == one.state_dict() and other.skipped_steps == 1
    plain = stepper(weight, half=None)
    assert plain.scaler.state_dict() == {}
    plain.load_state_dict(plain.state_dict())


def test_only_fp16_scales_and_both_half_types_cast():
    for half, scales in ((None, False), (torch.bfloat16, False), (torch.float16, True)):
        runtime = Runtime.single(half=half)
        assert runtime.grad_scaler().is_enabled() == scales
        with runtime.autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (half or torch.float32)


def test_a_left_out_step_of_a_run_changes_no_weight_and_no_average(tmp_path):
    methods = {"toy_critic": {}}
    config = toy_config(tmp_path / "run", runtime=FP16, ema=0.9, methods=methods)
    trainer = make_trainer(config, teachers={"main": teacher_net()})
    critic = trainer.methods["toy_critic"].inner_parameters()
    steps = trainer.steps()
    next(steps)
    assert trainer.stepper.skipped_steps == 0 and trainer.ema.updates == 1
    before = [p.clone() for p in trainer.student.parameters()]
    average = [p.clone() for p in trainer.ema.average.parameters()]
    judge = [p.clone() for p in critic]
    trainer.student.classifier.weight.register_hook(lambda gradient: gradient * float("inf"))
    next(steps)
    assert trainer.step == 2 and trainer.stepper.skipped_steps == 1 and trainer.ema.updates == 1
    for now, then in (
        (trainer.student.parameters(), before),
        (trainer.ema.average.parameters(), average),
    ):
        assert all(torch.equal(a, b) for a, b in zip(now, then, strict=True))
    moved = [not torch.equal(a, b) for a, b in zip(critic, judge, strict=True)]
    assert any(moved), "the critic has a scale of its own"
    assert trainer.optimizer.param_groups[0]["lr"] < 0.05, "the schedule goes on"


def test_an_fp16_run_learns_and_resumes_bit_for_bit(tmp_path, monkeypatch):
    changes = {
        "steps": 8,
        "save_every": 4,
        "methods": HOOKS,
        "ema": 0.9,
        "runtime": FP16,
        "optim": {"lr": 0.05, "clip": 1.0},
    }
    train_run(toy_config(tmp_path / "whole", **changes), teachers={"main": teacher_net()})
    parts = toy_config(tmp_path / "parts", **changes)
    stop_after(monkeypatch, 5)
    with pytest.raises(Interrupted):
        train_run(parts, teachers={"main": teacher_net()})
    monkeypatch.undo()
    train_run(parts, teachers={"main": teacher_net()})
    same(states(tmp_path / "parts"), states(tmp_path / "whole"))
    scales = states(tmp_path / "whole")["steppers"]
    assert scales.keys() == {"student", "methods.toy_critic"}
    assert scales["student"]["scaler"]["_growth_tracker"] == 8
