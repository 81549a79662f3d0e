"""Runs that are stopped and go on, and whether two runs ended alike."""

import os
import signal

import torch

from segkd import checkpoint
from segkd.engine.setup import assemble
from segkd.engine.trainer import Trainer
from segkd.runtime import Runtime, seed_everything


def make_trainer(config, **brought):
    runtime = Runtime.start(config.runtime.device, config.runtime.precision)
    seed_everything(config.seed, 0)
    return Trainer(config, assemble(config, runtime, **brought), runtime)


def states(folder):
    """All tensors and numbers of a run's last checkpoint, without times."""
    payload = checkpoint.load(folder / "checkpoints" / "last.pt")
    payload.pop("config")
    payload["tally"] = {key: payload["tally"][key] for key in ("sums", "left_out")}
    return payload


def same(found, expected, where=""):
    """Bit for bit, through mappings and lists."""
    assert type(found) is type(expected), where
    if isinstance(found, dict):
        assert found.keys() == expected.keys(), where
        for key, value in found.items():
            same(value, expected[key], f"{where}/{key}")
    elif isinstance(found, list):
        assert len(found) == len(expected), where
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            same(one, other, f"{where}/{number}")
    else:
        equal = torch.equal(found, expected) if torch.is_tensor(found) else found == expected
        assert equal, where


def stop_after(monkeypatch, step):
    """SIGTERM arrives while ``step`` is being trained."""
    original = Trainer._train_step

    def kill(self, batches):
        if self.step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, batches)

    monkeypatch.setattr(Trainer, "_train_step", kill)
