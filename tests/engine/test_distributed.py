"""Two processes reach the weights, banks and scores of one (promise 5), and resume alike."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import training_worker

TESTS = Path(__file__).parent.parent


def launch(folder: Path, processes: int) -> list[dict]:
    """What each rank of training_worker.py left; one process is this one."""
    folder.mkdir()
    if processes == 1:
        training_worker.main(folder)
        return [torch.load(folder / "rank0.pt")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    found = subprocess.run(
        [*torchrun, f"--nproc-per-node={processes}", TESTS / "training_worker.py", folder],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(processes)]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    return launch(folder / "one", 1) + launch(folder / "two", 2)


KINDS = ("plain", "accumulated", "unlabelled", "relations", "quantised", "drawn")


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_end_with_the_weights_and_banks_of_one(results, kind):
    one, first, second = (result[kind]["state"] for result in results)
    torch.testing.assert_close(dict(first), dict(second), rtol=0, atol=0)
    if kind != "accumulated":  # a micro-step's unequal counts depend on who shares it
        torch.testing.assert_close(dict(first), dict(one), rtol=1e-6, atol=1e-9)


def test_no_image_is_counted_twice(results):
    one, first, second = (result["plain"] for result in results)
    assert one["images"] == first["images"] == second["images"] == 7
    assert torch.equal(one["matrix"], first["matrix"])
    assert torch.equal(first["matrix"], second["matrix"])


def test_a_whole_run_works_on_two_processes(results):
    assert results[1]["miou"] == results[2]["miou"]
