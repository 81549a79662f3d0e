"""CPUs that a process may use, and how its threads wait."""

import itertools
import json
import os
import subprocess
import sys

import pytest
import torch
from exported import pictures, toy_student

import segkd
from segkd import cli, cpus
from segkd.engine.timing import StepTimer
from segkd.errors import ConfigError
from segkd.inference.lane_detector import LaneDetector
from segkd.models.build import network_from_file
from segkd.runtime import limit_threads

V1_HALF = {"cpu__x__cpu_cfs_quota_us": "50000", "cpu__x__cpu_cfs_period_us": "100000"}
V1_FREE = {"cpu__cpu_cfs_quota_us": "-1", "cpu__cpu_cfs_period_us": "100000"}


def cgroup(tmp_path, line, **files):
    """A file like /proc/self/cgroup with one line, and limits below a folder of cgroups."""
    own, root = tmp_path / "cgroup", tmp_path / "sys"
    own.write_text(line + "\n")
    for path, text in files.items():
        file = root / path.replace("__", "/").replace("cpu_max", "cpu.max")
        file = file.with_name(file.name.replace("cpu_cfs", "cpu.cfs"))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return own, root


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model name\t: A\nflags\t\t: fpu avx2 fma\n", True),
        ("flags\t\t: fpu avx2 avx512_vnni\n", False),
        ("flags\t\t: fpu avx2 avx_vnni\n", False),
        ("Features\t: fp asimd asimddp\n", False),
    ],
)
def test_cpus_whose_int8_sums_are_cut_off_are_known(tmp_path, text, expected):
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    assert cpus.saturates_int8(file) is expected
    assert not cpus.saturates_int8(tmp_path / "missing")


@pytest.mark.parametrize(
    ("line", "files", "expected"),
    [
        ("0::/", {"cpu_max": "150000 100000\n"}, 1.5),
        ("0::/", {"cpu_max": "max 100000\n"}, None),
        ("0::/a/b", {"a__cpu_max": "400000 100000", "a__b__cpu_max": "max 100000"}, 4.0),
        ("0::/a/b", {"a__cpu_max": "400000 100000", "a__b__cpu_max": "200000 100000"}, 2.0),
        ("0::/only/outside/the/container", {"cpu_max": "300000 100000"}, 3.0),
        ("0::/", {}, None),
        ("0::/", {"cpu_max": "nonsense"}, None),
        ("4:cpu,cpuacct:/x", V1_HALF, 0.5),
        ("4:cpu,cpuacct:/", V1_FREE, None),
        ("5:memory:/", {"cpu_max": "100000 100000"}, None),
    ],
)  # fmt: skip
def test_quota_of_cgroups(tmp_path, line, files, expected):
    assert cpus.cpu_quota(*cgroup(tmp_path, line, **files)) == expected


def test_no_quota_without_cgroups(tmp_path):
    assert cpus.cpu_quota(tmp_path / "missing", tmp_path) is None


@pytest.mark.parametrize(
    ("quota", "expected"), [(None, 8), (1.5, 2), (0.2, 1), (6.0, 6), (64.0, 8)]
)
def test_available_cpus_are_limited_by_affinity_and_quota(monkeypatch, quota, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(cpus, "cpu_quota", lambda: quota)
    assert cpus.available_cpus() == expected


@pytest.mark.parametrize(
    ("processes", "loaders", "expected"), [(1, 0, 8), (1, 3, 5), (2, 1, 3), (8, 2, 1), (1, 9, 1)]
)
def test_threads_are_this_process_s_share(monkeypatch, processes, loaders, expected):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setattr("segkd.runtime.available_cpus", lambda: 8)
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    limit_threads(None, loaders)
    assert chosen == [expected]


SET = {"OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": None, "KMP_BLOCKTIME": None}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
        ({"GOMP_SPINCOUNT": "1000"}, {"GOMP_SPINCOUNT": "1000"}),
        ({"KMP_BLOCKTIME": "0"}, {"KMP_BLOCKTIME": "0"}),
    ],
)
def test_commands_let_threads_spin_briefly_unless_the_user_chose(given, expected):
    code = (
        "import json, os, sys; from segkd import cpus, cli; assert 'torch' not in sys.modules\n"
        f"cli.app = lambda *a, **k: print(json.dumps([os.environ.get(n) for n in {list(SET)}]))\n"
        "cli.main([])"
    )
    environment = {name: value for name, value in os.environ.items() if name not in SET} | given
    output = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert dict(zip(SET, json.loads(output.stdout), strict=True)) == SET | expected


def test_the_python_interface_lets_threads_spin_briefly_too():
    code = (
        "import os, sys, segkd; assert 'GOMP_SPINCOUNT' not in os.environ\n"
        "segkd.predict; assert 'torch' in sys.modules; print(os.environ['GOMP_SPINCOUNT'])"
    )
    environment = {name: value for name, value in os.environ.items() if name not in SET}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(cpus.SPINS)


class Reached(Exception):
    """Ends a command where its threads are limited."""


@pytest.mark.parametrize(
    "command",
    [
        ("eval", "run"),
        ("predict", "run", "images"),
        ("lane", "run", "drive.mp4"),
        ("export", "run"),
        ("demo", "lanes"),
    ],
)
def test_commands_take_the_share_of_the_cpus_before_they_open_a_network(
    tmp_path, monkeypatch, command
):
    """In a container with a quota torch and ONNX Runtime would start a thread for each CPU."""

    def limit(threads=None, loaders=0):
        raise Reached((threads, loaders))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("segkd.runtime.limit_threads", limit)
    monkeypatch.setattr("segkd.commands.demo.draw_drive", lambda video, *_: video)
    with pytest.raises(Reached, match=r"\(None, 0\)"):
        cli.app(list(command), standalone_mode=False)


@pytest.mark.parametrize(
    "use",
    [
        lambda keys: segkd.evaluate(toy_student(), overrides=keys),
        lambda keys: segkd.predict(toy_student(), pictures(1), overrides=keys),
        lambda keys: segkd.predict(
            network_from_file(toy_student())[0], pictures(1), overrides=keys
        ),
        lambda keys: LaneDetector("pretrained:lanes_fpn_efficientnet_lite0", overrides=keys),
    ],
    ids=["evaluate", "predict", "predict_network", "lanes"],
)
def test_inference_takes_threads_that_are_asked_for(monkeypatch, use):
    toy_student()  # trained here, if it is the first that asks for it
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    use(["runtime.threads=3"])
    assert set(chosen) == {3}
    chosen.clear()
    use([])  # not those in the file, which were chosen for the machine of its training
    assert chosen == []
    with pytest.raises(ConfigError, match=r"runtime\.threads"):
        use(["runtime.threads=many"])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="one CPU can't be chosen here")
def test_interruptions_are_counted():
    """A busy loop beside another one on the same CPU is interrupted again and again."""
    cpu = min(os.sched_getaffinity(0))
    code = (
        "import os, time; from segkd.cpus import interruptions\n"
        f"os.sched_setaffinity(0, {{{cpu}}})\n"
        "start, before = time.perf_counter(), interruptions()\n"
        "while interruptions() < before + 3 and time.perf_counter() < start + 60: pass\n"
        "print(interruptions() - before)"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert max(int(one.communicate()[0]) for one in both) >= 3


def timer_of(seconds, threads, monkeypatch, interrupted=0):
    """A timer after backward passes of so many seconds, each interrupted so many times."""
    timer = StepTimer(torch.device("cpu"))
    clock = iter([value for one in seconds for value in (0.0, one)])
    counts = itertools.count(0, interrupted) if interrupted else itertools.repeat(0)
    monkeypatch.setattr("segkd.engine.timing.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr("segkd.engine.timing.interruptions", lambda: next(counts))
    for _ in seconds:
        with timer.part("backward"):
            pass
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    return timer


def test_erratic_steps_are_told_once_with_the_repair(monkeypatch):
    timer = timer_of([0.1] * 16 + [2.0] * 4, 2, monkeypatch)
    (told,) = timer.doubts()
    assert "0.1 s, and one in ten 2 s" in told
    assert told.endswith("2 threads wait for each other: try runtime.threads=1")
    assert not list(timer.doubts())


@pytest.mark.parametrize(("interrupted", "threads", "told"), [(50, 2, 1), (50, 8, 0), (5, 2, 0)])
def test_steps_that_are_evenly_slow_beside_other_work(monkeypatch, interrupted, threads, told):
    """50 interruptions in a tenth of a second: 250 a second for each of two threads."""
    timer = timer_of([0.1] * 20, threads, monkeypatch, interrupted)
    found = list(timer.doubts())
    assert len(found) == told
    if told:
        assert found[0].startswith("steps are interrupted 500 times a second.")


@pytest.mark.parametrize(
    ("seconds", "threads"),
    [
        ([0.1] * 20, 2),  # steady
        ([0.1] * 19 + [9.0], 2),  # one slow step, such as a save by another process
        ([0.1] * 8 + [2.0] * 4, 2),  # too few to tell
        ([0.1] * 16 + [2.0] * 4, 1),  # one thread waits for none
        ([9.0] * 4 + [0.1] * 20, 2),  # compiled at first
    ],
)
def test_steps_that_are_no_reason_to_warn(monkeypatch, seconds, threads):
    assert not list(timer_of(seconds, threads, monkeypatch).doubts())
