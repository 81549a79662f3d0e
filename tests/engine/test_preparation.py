"""A method that trains inner parameters beforehand: first they learn, then the student does."""

import pytest
import torch
from resuming import make_trainer, same, states, stop_after
from toy_run import teacher_net, toy_config

from segkd import checkpoint
from segkd.engine.optim import first_step, weight_share
from segkd.engine.profile import profile_run
from segkd.engine.run import train_run
from segkd.errors import Interrupted
from segkd.methods.ft import FT
from segkd.methods.kd import KD

STILL = {"arch": "toy", "options": {"norm": False}}  # no dropout, whose draws would differ
ADAM = {"name": "adamw", "lr": 0.01, "weight_decay": 0.0}


def keys(prepared=3, **changes):
    return {
        "student": STILL,
        "teachers": {"main": {"arch": "toy"}},
        "methods": {"ft": {"paraphraser_steps": prepared, "adapter_warmup": 0}},
        "optim": ADAM,
    } | changes


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(before, after, *prefixes):
    return {
        name
        for name in before
        if name.startswith(prefixes) and not torch.equal(before[name], after[name])
    }


def test_inner_parameters_learn_first_and_are_frozen_then(tmp_path):
    trainer = make_trainer(toy_config(tmp_path / "run", **keys()))
    plain = make_trainer(toy_config(tmp_path / "plain", **keys(methods={})))
    method, names = trainer.methods["ft"], ("encoder", "decoder")
    inner = {n for n, _ in method.named_parameters() if n.startswith(names)}
    others = {n for n, _ in method.named_parameters()} - inner
    before = state(method)
    for step, _ in enumerate(zip(trainer.steps(), plain.steps(), strict=True)):
        now = state(method)
        assert moved(before, now, *names) == (inner if step < 3 else set())
        assert moved(before, now, "translator") == (others if step >= 3 else set())
        values = trainer.tally.collect(trainer.runtime, ["ft/ft", "ft/own_reconstruction"])
        assert set(values) == {"ft/own_reconstruction" if step < 3 else "ft/ft"}
        before = now
        alike = not moved(state(trainer.student), state(plain.student), "")
        assert alike == (step < 3), "until then the student learns as without the entry"


@pytest.mark.parametrize("stop", [2, 5])
def test_a_run_resumes_bit_for_bit_inside_and_after_it(tmp_path, monkeypatch, stop):
    changes = keys(4, steps=8, save_every=8)
    whole, parts = (toy_config(tmp_path / name, **changes) for name in ("whole", "parts"))
    train_run(whole)
    stop_after(monkeypatch, stop)
    with pytest.raises(Interrupted):
        train_run(parts)
    monkeypatch.undo()
    torch.rand(3)
    train_run(parts)
    same(states(tmp_path / "parts"), states(tmp_path / "whole"))


def test_beforehand_in_a_run_of_its_own(tmp_path):
    """Nothing but the paraphraser learns there; the next run takes it over and leaves it."""
    alone = keys(9, train=["methods.ft.*"], task={"weight": 0})
    train_run(toy_config(tmp_path / "first", **alone))
    first = checkpoint.load(tmp_path / "first/checkpoints/last.pt")
    fresh = make_trainer(toy_config(tmp_path / "fresh", **keys()))
    same(dict(first["student"]), dict(fresh.student.state_dict()))
    log = (tmp_path / "first/log.txt").read_text()
    assert "WARNING: methods.ft: its own layers learn for 9 steps, but it would teach" in log
    changes = keys(0, init_from=str(tmp_path / "first"))
    train_run(toy_config(tmp_path / "second", **changes))
    assert "its own layers" not in (tmp_path / "second/log.txt").read_text()
    second = checkpoint.load(tmp_path / "second/checkpoints/last.pt")
    taught, learned = (
        {n.removeprefix("methods.ft."): v for n, v in payload["objective"].items()}
        for payload in (first, second)
    )
    assert moved(state(fresh.methods["ft"]), taught, "encoder", "decoder")
    assert not moved(taught, learned, "encoder", "decoder")
    assert moved(taught, learned, "translator")


def test_the_log_says_when_it_begins_to_teach(tmp_path):
    train_run(toy_config(tmp_path / "run", **keys(2)))
    text = "methods.ft: its own layers learn for 2 steps, then they are frozen and it teaches from"
    assert f"{text} step 2 on" in (tmp_path / "run/log.txt").read_text()
    train_run(toy_config(tmp_path / "random", **keys(0)))
    log = (tmp_path / "random/log.txt").read_text()
    assert "WARNING: methods.ft: its own layers learn for 0 steps, so it teaches with random" in log


def test_it_begins_at_the_later_of_start_and_preparation():
    default, early, late = (
        FT(FT.Config(**options)) for options in ({}, {"start": 3}, {"start": 30, "warmup": 2})
    )
    assert [first_step(method, 100) for method in (default, early, late)] == [10, 10, 30]
    assert first_step(KD(KD.Config(start=7)), 100) == 7
    found = [weight_share(late.config, step, 100, 40) for step in (39, 40, 41)]
    assert found == [0, 0.5, 1]


def test_a_run_whose_entries_all_start_later_begins_without_any_loss(tmp_path):
    changes = {"task": {"weight": 0}, "methods": {"kd": {"start": 2}}, "optim": ADAM}
    teachers = {"main": teacher_net()}
    trainer = make_trainer(toy_config(tmp_path, student=STILL, **changes), teachers=teachers)
    steps, before = trainer.steps(), state(trainer.student)
    next(steps), next(steps)
    assert not moved(before, state(trainer.student), "")
    next(steps)
    assert moved(before, state(trainer.student), "encoder")


def test_a_profile_is_of_the_steps_that_teach(tmp_path, monkeypatch):
    seen = []
    original = FT.loss
    monkeypatch.setattr(FT, "loss", lambda *a: seen.append(1) or original(*a))
    profile_run(toy_config(tmp_path, **keys(500)), steps=2)
    assert len(seen) == 1 + 6 + 3  # the dry step, all steps, and those that weights are seen in
