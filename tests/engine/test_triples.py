"""All methods combine: any three of them, with networks of other families and strides."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from triples import state_of, trainer_of, triples

TESTS = Path(__file__).parent.parent


def cases():
    """The first triples that hold every method; further ones are slow."""
    seen = set()
    for names, pair in triples(20):
        marks = [pytest.mark.slow] if seen.issuperset(names) else []
        yield pytest.param(names, pair, marks=marks, id="-".join(names))
        seen.update(names)


@pytest.mark.parametrize(("names", "pair"), list(cases()))
def test_three_methods_train_together_and_resume(tmp_path, names, pair):
    whole = trainer_of(tmp_path, names, pair)
    steps = whole.steps()
    next(steps)
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    next(steps)
    state = state_of(whole)
    moved = [key for key, value in saved["student"].items() if not torch.equal(value, state[key])]
    assert moved and all(v.isfinite().all() for v in state.values() if v.is_floating_point())
    resumed = trainer_of(tmp_path, names, pair)
    resumed.load_state_dict(saved)
    next(resumed.steps())
    torch.testing.assert_close(state_of(resumed), state, rtol=0, atol=0)


def test_two_processes_stay_equal(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    found = subprocess.run(
        [*torchrun, "--nproc-per-node=2", TESTS / "triples.py", tmp_path],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    for number in range(2):
        one, two = (torch.load(tmp_path / f"{number}_rank{rank}.pt") for rank in range(2))
        torch.testing.assert_close(one, two, rtol=0, atol=0)
