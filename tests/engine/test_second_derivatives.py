"""Training with `at: {form: gradient}` and `mhgd`: second derivatives, and a first phase."""

import pytest
import torch
from resuming import make_trainer, same, states, stop_after
from toy_run import teacher_net, toy_config

from segkd.engine.run import train_run
from segkd.engine.setup import make_methods
from segkd.errors import ConfigError, Interrupted
from segkd.models.build import build_network

GRADIENT = {"at": {"form": "gradient", "weight": 1.0}}
STAGES = {"at": {"form": "gradient", "weight": 1.0, "taps": ["stage3", "stage5"]}}
MHGD = {"mhgd": {"attention_steps": 3, "grid": [2, 3], "heads": 2, "adapter_warmup": 0}}
STILL = {"arch": "toy", "options": {"norm": False}}


def trainer_of(folder, methods=GRADIENT, **changes):
    keys = {"student": STILL, "methods": methods, "teachers": {}} | changes
    return make_trainer(toy_config(folder, **keys), teachers={"main": teacher_net()})


def trained(trainer):
    for _ in trainer.steps():
        pass
    return trainer.student.state_dict()


@pytest.mark.parametrize("methods", [GRADIENT, STAGES], ids=["image", "stages"])
def test_the_whole_student_learns_and_the_value_falls(tmp_path, methods):
    changes = {"task": {"weight": 0}, "steps": 30, "optim": {"name": "adamw", "lr": 3e-3}}
    trainer = trainer_of(tmp_path, methods, **changes)
    before = {name: value.clone() for name, value in trainer.student.state_dict().items()}
    names, values = [name for name in trainer.terms if name.startswith("at/")], []
    for _ in trainer.steps():
        values.append(sum(trainer.tally.collect(trainer.runtime, names).values()))
    after = trainer.student.state_dict()
    learned = {n for n, p in trainer.student.named_parameters() if p.requires_grad}
    assert {n for n in learned if not torch.equal(before[n], after[n])} == learned
    assert "encoder.0.0.weight" in learned and "classifier.weight" in learned
    assert sum(values[-5:]) < 0.9 * sum(values[:5])
    teacher = trainer.parts.teachers.members["main"].network
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("methods", [GRADIENT, MHGD], ids=["at", "mhgd"])
@pytest.mark.parametrize("stop", [2, 5])
def test_a_run_resumes_bit_for_bit(tmp_path, monkeypatch, methods, stop):
    """With batch norm, dropout and an average; inside of the phase of mhgd, and after it."""
    changes = {"methods": methods, "steps": 8, "save_every": 8, "ema": 0.9}
    teachers = {"main": teacher_net()}
    whole, parts = (toy_config(tmp_path / name, **changes) for name in ("whole", "parts"))
    train_run(whole, teachers=teachers)
    stop_after(monkeypatch, stop)
    with pytest.raises(Interrupted):
        train_run(parts, teachers=teachers)
    monkeypatch.undo()
    torch.rand(3)
    train_run(parts, teachers=teachers)
    same(states(tmp_path / "parts"), states(tmp_path / "whole"))


def test_the_attention_learns_first_and_is_frozen_then(tmp_path):
    trainer = trainer_of(tmp_path, MHGD)
    graphs = trainer.methods["mhgd"].graphs
    before = [value.clone() for value in graphs.state_dict().values()]
    for step, _ in enumerate(trainer.steps()):
        now = [value.clone() for value in graphs.state_dict().values()]
        assert all(map(torch.equal, before, now)) == (step >= 3)
        seen = trainer.tally.collect(trainer.runtime, [n for n in trainer.terms if "mhgd" in n])
        assert {name.startswith("mhgd/own_") for name in seen} == {step < 3}
        before = now


@pytest.mark.parametrize("methods", [GRADIENT, STAGES, MHGD], ids=["image", "stages", "mhgd"])
def test_memory_format_and_precision_change_rounding_alone(tmp_path, methods):
    def state(name, **runtime):
        changes = {"runtime": {"device": "cpu", **runtime}}
        return trained(trainer_of(tmp_path / name, methods, **changes))

    single, last, half = (
        state("one"),
        state("two", channels_last=True),
        state("3", precision="bf16"),
    )
    for name, value in single.items():
        torch.testing.assert_close(last[name], value, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(half[name], value, rtol=0.1, atol=0.03)


@pytest.mark.parametrize("key", ["compile", "sync_bn"])
def test_what_has_no_second_derivative_is_refused(tmp_path, key):
    config = toy_config(tmp_path, methods=GRADIENT, runtime={"device": "cpu", key: True})
    with pytest.raises(ConfigError, match=rf"methods\.at: .*runtime\.{key}=false"):
        make_methods(config, 4, ["main"])
    make_methods(toy_config(tmp_path, runtime={"device": "cpu", key: True}), 4, ["main"])


def test_an_operation_without_a_second_derivative_names_the_entry(tmp_path):
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return gradient

    config = toy_config(tmp_path, student=STILL, methods=GRADIENT)
    student = build_network(config.student, 4)
    student.drop.forward = Once.apply
    with pytest.raises(ConfigError, match=r"methods\.at: .*Use another student"):
        make_trainer(config, student=student, teachers={"main": teacher_net()})


def test_a_teacher_without_features_is_refused(tmp_path):
    one = {"arch": "toy"}
    teachers = {"one": one, "two": one, "both": {"ensemble": ["one", "two"]}}
    methods = {"at": {"form": "gradient", "teacher": "both"}}
    with pytest.raises(ConfigError, match="an ensemble and has no features"):
        make_trainer(toy_config(tmp_path, methods=methods, teachers=teachers))


def test_micro_steps_and_two_entries_of_one_teacher(tmp_path):
    """The teacher's graph is needed twice in a step."""
    methods = GRADIENT | {"stages": {"method": "at", **STAGES["at"]}}
    optim = {"lr": 0.05, "accumulate": 2}
    state = trained(trainer_of(tmp_path, methods, optim=optim))
    assert all(value.isfinite().all() for value in state.values())


def test_the_attention_may_come_from_a_run_of_its_own(tmp_path):
    teachers = {"main": teacher_net()}
    first = {"mhgd": MHGD["mhgd"] | {"attention_steps": 6}}
    changes = {"task": {"weight": 0}, "train": ["methods.mhgd.*"]}
    train_run(toy_config(tmp_path / "first", methods=first, **changes), teachers=teachers)
    learned = states(tmp_path / "first")["objective"]
    second = {"mhgd": MHGD["mhgd"] | {"attention_steps": 0}}
    trainer = trainer_of(
        tmp_path / "two", second, init_from=str(tmp_path / "first"), student={"arch": "toy"}
    )
    trained(trainer)
    found = {f"methods.{k}": v for k, v in trainer.objective.methods.state_dict().items()}
    graphs = {name for name in learned if name.startswith("methods.mhgd.graphs")}
    assert graphs and all(torch.equal(found[name], learned[name]) for name in graphs)
