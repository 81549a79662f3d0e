"""Runs, trials and profiles choose kernels alike, or their times would say nothing of a run's."""

import pytest
from toy_run import toy_config

from segkd.engine import profile, run, trial
from segkd.engine.profile import profile_run
from segkd.engine.run import train_run
from segkd.engine.setup import assemble
from segkd.engine.trial import on_trial
from segkd.runtime import Runtime


def trained(config):
    train_run(config)


def tried(config):
    on_trial(config, Runtime.single(), assemble, lambda trainer: None)


def profiled(config):
    profile_run(config, steps=1)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("use", [trained, tried, profiled])
def test_kernels_are_chosen_by_the_config(tmp_path, monkeypatch, use, deterministic):
    chosen = []
    for module in (run, trial, profile):
        monkeypatch.setattr(module, "choose_kernels", lambda **how: chosen.append(how))
    runtime = {"deterministic": deterministic, "device": "cpu", "threads": 1}
    use(toy_config(tmp_path / "run", steps=2, runtime=runtime))
    assert chosen == [{"deterministic": deterministic}]
