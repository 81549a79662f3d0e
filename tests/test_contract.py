"""Promises 1 to 5 of the design, for every registered method, variants of them, and the toys.

The checks are those of ``segkd.testing``. A new method is found by the registry: nothing is edited
here when one is added.
"""

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from cases import all_methods, config_of
from distributed_worker import scenarios

import segkd
from segkd.testing import METHOD_CHECKS, CheckFailed, check_method
from segkd.testing.cases import make_case
from segkd.testing.measure import measure
from segkd.testing.method_subject import values

METHODS = all_methods()
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
CHECKS = [
    pytest.param(name, marks=pytest.mark.gpu) if name == "on_the_gpu" else name
    for name in METHOD_CHECKS.names
]
EXEMPT = [
    pytest.param(method, check, id=f"{name}-{check}")
    for name, method in METHODS.items()
    for check in method.__dict__.get("exempt", {})
]


@pytest.mark.parametrize("check", CHECKS)
@every_method
def test_check(method, check):
    report = check_method(method, config_of(method), only=check)
    if report.skipped:
        pytest.skip(report.skipped[check])
    assert report.passed == [check]


@pytest.mark.parametrize(("method", "check"), EXEMPT)
def test_an_exemption_is_needed(method, check, monkeypatch):
    """A check that holds after all must not be left out."""
    monkeypatch.setattr(method, "exempt", {})
    with pytest.raises(CheckFailed):
        check_method(method, only=check)


@pytest.mark.slow
def test_methods_work_in_spawned_processes():
    """What the check of pickling stands for."""
    cases = {name: make_case(method) for name, method in METHODS.items()}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        found = list(pool.map(values, cases.values()))
    for name, there in zip(cases, found, strict=True):
        assert there == values(cases[name]), name


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory):
    """What both of two gloo processes measured, for all methods and scenarios."""
    folder, tests = tmp_path_factory.mktemp("ranks"), Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", str(tests / "distributed_worker.py"), str(folder)]
    paths = os.pathsep.join([str(Path(segkd.__path__[0]).parent), str(tests)])
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,  # a hanging rendezvous must not hang the suite
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@every_method
def test_one_and_two_real_processes_agree(method, two_processes):
    """What the check `two_processes` simulates, with gloo."""
    for scenario, case in scenarios(method).items():
        alone = measure(case)
        for found in two_processes:
            torch.testing.assert_close(found[method.name][scenario], alone, rtol=1e-6, atol=1e-9)
