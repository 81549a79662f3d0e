"""Runs and evaluations copy one batch ahead, from pinned memory, where there is a CUDA device."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from resuming import make_trainer
from toy_run import ToyData, toy_config

from segkd.config.schema import EvalConfig
from segkd.data import loader
from segkd.engine import run_loader, trainer
from segkd.evaluation import batches
from segkd.evaluation.evaluator import evaluate_network
from segkd.runtime import Runtime


class Lane:
    """Writes down when copies begin, and when they are waited for."""

    def __init__(self):
        self.events = []

    @contextlib.contextmanager
    def copying(self):
        self.events.append("copy")
        yield

    def mark(self):
        return None

    def wait(self, mark, tensors):
        assert all(torch.is_tensor(one) for one in tensors)
        self.events.append("wait")


def test_a_training_step_computes_while_the_next_batch_is_copied(tmp_path, monkeypatch):
    lane = Lane()
    monkeypatch.setattr(trainer, "lane_for", lambda device: lane)
    config = toy_config(tmp_path / "run", steps=3)
    for _ in make_trainer(config).steps():
        lane.events.append("step")
    step = ["copy", "wait", "step"]
    assert lane.events == ["copy", *step, *step, "wait", "step"]


def test_an_evaluation_copies_ahead_as_well(tmp_path, monkeypatch):
    lane = Lane()
    monkeypatch.setattr(batches, "lane_for", lambda device: lane)
    config = toy_config(tmp_path / "run")
    plain = make_trainer(config)
    options = EvalConfig(limit=3, batch_size=1)
    data = ToyData(config.data, "val")
    evaluate_network(plain.student, data, options, Runtime.single())
    assert lane.events == ["copy", "copy", "wait", "copy", "wait", "wait"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_are_pinned_for_cuda_alone(tmp_path, monkeypatch, device):
    asked = []

    def noted(*_, pin_memory, **__):
        asked.append(pin_memory)

    config = toy_config(tmp_path / "run")
    parts = make_trainer(config).parts
    monkeypatch.setattr(run_loader, "train_loader", noted)
    monkeypatch.setattr(loader, "eval_loader", noted)
    runtime = SimpleNamespace(device=torch.device(device), world=1, rank=0)
    run_loader.run_loader(config, parts, runtime, 0, 1, 0)
    batches.open_loader(ToyData(config.data, "val"), config.eval, runtime, 0)
    assert asked == [device == "cuda"] * 2
