"""Checkpoints: written in whole or not at all, and never executed when read."""

import pickle

import pytest
import torch
from torch import nn

from segkd import checkpoint
from segkd.errors import CheckpointError, MachineError


def test_what_was_saved_is_loaded(tmp_path):
    path = tmp_path / "folder" / "last.pt"
    checkpoint.save(path, {"format": checkpoint.FORMAT, "weights": torch.arange(3), "step": 4})
    loaded = checkpoint.load(path)
    assert loaded["step"] == 4
    assert torch.equal(loaded["weights"], torch.arange(3))


def test_an_interrupted_write_leaves_the_old_file_and_no_debris(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"format": checkpoint.FORMAT, "step": 1})

    def full_disk(payload, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(MachineError, match=r"No space left.*intact"):
        checkpoint.save(path, {"format": checkpoint.FORMAT, "step": 2})
    monkeypatch.undo()
    assert checkpoint.load(path)["step"] == 1
    assert [item.name for item in tmp_path.iterdir()] == ["last.pt"]


class Bomb:
    """Would create a file if a loader executed what it reads."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_pickled_code_is_refused_and_not_executed(tmp_path):
    path, trace = tmp_path / "evil.pt", tmp_path / "trace"
    torch.save({"format": checkpoint.FORMAT, "bomb": Bomb(trace)}, path)
    trace.unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="nothing in it was executed"):
        checkpoint.load(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"hello", r"cannot be read as a checkpoint \(\w+: .*\)\. torch\.save did not write it"),
        (b"import os\n", r"cannot be read as a checkpoint.* torch\.save did not write it"),
        (pickle.dumps({"a": 1}), r"other\.pt"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "other.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(path)


def test_a_foreign_state_dict_is_refused(tmp_path):
    path = tmp_path / "foreign.pt"
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(CheckpointError, match="no `format` entry"):
        checkpoint.load(path)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        checkpoint.load(tmp_path / "nowhere.pt")


def test_restore_lists_what_does_not_fit():
    state = {"weight": torch.zeros(3, 2), "extra": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"missing: bias.*unknown: extra.*\(3, 2\) in the"):
        checkpoint.restore(nn.Linear(2, 2), state, "student")
