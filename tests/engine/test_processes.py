"""Trainings as processes: killed, stopped, stuck, started twice, short of memory and of space.

``pytest -m slow tests/engine/test_processes.py``; the counts stand in docs/reliability.md.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import Training, children, runs, train
from resuming import same, states

pytestmark = pytest.mark.slow
LOADERS = "data={name: toy, batch_size: 4, workers: 2, crop: [32, 48]}"
LONG = ("steps=100000", "save_every=100000", LOADERS)
KILLS = 12


def mounts():
    """Whether this process may mount a file system of its own."""
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(command, capture_output=True).returncode == 0


mounting = pytest.mark.skipif(not mounts(), reason="may not mount a small disk")


def small(training, place, size):
    """The training with a small disk at ``place``."""
    script = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"'
    training.command = ["unshare", "-m", "sh", "-c", script, "sh", size, place, *training.command]
    return training


def step_of(folder):
    return states(folder / "runs/run")["step"]


# -- what hangs ------------------------------------------------------------------------------------


@mounting
def test_a_small_shared_memory_is_an_error_that_says_what_to_type(tmp_path):
    data = "data={name: toy, batch_size: 64, workers: 2, crop: [320, 480]}"
    with small(Training(tmp_path, data), "/dev/shm", "4m") as training:
        ended = training.end()
    assert ended.code == 2
    assert "--shm-size" in ended.text and "data.workers=0" in ended.text
    assert "Traceback" not in ended.text


def test_a_stuck_loader_is_an_error_within_a_minute(tmp_path):
    with Training(tmp_path, *LONG, faults="hang-loader,slow-step") as training:
        training.until_text("step 10/")
        workers = children(training.process.pid)
        training.flag.touch()
        training.began = time.monotonic()
        ended = training.end()
    assert ended.code == 2
    assert "loader processes hang" in ended.text and "data.workers=0" in ended.text
    assert workers and not any(runs(pid) for pid in workers)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_that_waits_for_a_stuck_loader_and_saves(tmp_path, number):
    with Training(tmp_path, *LONG, faults="hang-loader,slow-step") as training:
        training.until_text("step 10/")
        training.flag.touch()
        time.sleep(2)
        training.send(number)
        ended = training.end()
    assert ended.code == 128 + number
    saved = step_of(tmp_path)
    assert saved >= 10 and f"after step {saved} of" in ended.text
    training.flag.unlink()
    with Training(tmp_path, *LONG, faults="slow-step") as training:
        training.until_text(f"resuming from step {saved}")


def test_a_signal_ends_a_run_that_hangs_where_no_python_runs(tmp_path):
    with Training(tmp_path, "save_every=1", faults="hang-step") as training:
        training.until(training.flag.exists)
        training.send(signal.SIGTERM)
        ended = training.end()
    assert ended.code == 128 + signal.SIGTERM
    assert "did not react" in ended.text and "last.pt holds step 2" in ended.text
    assert step_of(tmp_path) == 2
    assert train(tmp_path, "save_every=1").code == 0


def test_a_script_exits_after_an_exception_with_loader_processes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import toy_run, sys\n"
        "from segkd.engine.run import train_run\n"
        "from segkd.engine.trainer import Trainer\n"
        "def fail(self, batches): raise KeyError('of a script')\n"
        "if __name__ == '__main__':\n"
        "    toy_run.register()\n"
        "    Trainer._train_step = fail\n"
        "    data = {'name': 'toy', 'batch_size': 4, 'workers': 2, 'crop': [32, 48]}\n"
        "    train_run(toy_run.toy_config('run', data=data))\n"
    )
    training = Training(tmp_path)
    training.command = [sys.executable, str(script)]
    with training:
        ended = training.end()
    assert ended.code == 1 and "KeyError: 'of a script'" in ended.text


# -- stopped and killed ----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_last_evaluation_loses_nothing(tmp_path, number):
    with Training(tmp_path, "save_every=500", faults="slow-eval") as training:
        training.until(training.flag.exists)
        training.send(number)
        ended = training.end()
    assert ended.code == 128 + number and step_of(tmp_path) == 6
    assert train(tmp_path, "save_every=500").code == 0


def test_kills_at_any_time_change_no_bit(tmp_path):
    """Killed again and again, among others within saves, until the run is finished."""
    keys = ("steps=60", "save_every=1", LOADERS, "eval.every=10")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    assert train(whole, *keys).code == 0
    draw, kills = random.Random(0), 0
    while kills < KILLS:
        with Training(parts, *keys, faults="slow-step") as training:
            training.until_text("step ")
            time.sleep(draw.uniform(0, 0.5))
            if training.process.poll() is not None:
                break
            os.kill(training.process.pid, signal.SIGKILL)
            training.process.wait()
            kills += 1
    print(f"{kills} kills")
    assert train(parts, *keys).code == 0
    same(states(parts / "runs/run"), states(whole / "runs/run"))
    left = {path.name for path in (parts / "runs/run").rglob("*") if path.is_file()}
    assert left == {path.name for path in (whole / "runs/run").rglob("*") if path.is_file()}
    assert kills >= 3


def test_a_kill_changes_no_bit_of_a_quantised_run_on_two_processes(tmp_path):
    keys = ("steps=8", "save_every=1", "ema=0.9", "methods={dml: {peers: {like: {}}}}")
    keys += ("quantize={bits: 4, activations: 8, first_and_last: true}",)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    assert train(whole, *keys, processes=2).code == 0
    with Training(parts, *keys, processes=2, faults="slow-step") as training:
        training.until_text("step 4")
        for pid in (*children(training.process.pid), training.process.pid):
            os.kill(pid, signal.SIGKILL)
    assert not (parts / "runs/run/summary.json").exists()
    ended = train(parts, *keys, processes=2)
    assert ended.code == 0 and "resuming from step" in ended.text
    same(states(parts / "runs/run"), states(whole / "runs/run"))


def test_a_second_start_is_refused_and_a_killed_one_leaves_no_lock_that_holds(tmp_path):
    with Training(tmp_path, *LONG, faults="slow-step") as training:
        training.until_text("step 10/")
        other = Training(tmp_path, *LONG)
        other.output = tmp_path / "other.txt"
        with other:
            refused = other.end()
        assert refused.code == 2
        assert f"pid {training.process.pid} on " in refused.text
        assert training.process.poll() is None
        os.kill(training.process.pid, signal.SIGKILL)
        training.process.wait()
    assert (tmp_path / "runs/run/.lock").exists()
    with Training(tmp_path, *LONG, faults="slow-step") as training:
        training.until_text("step 10/")


# -- memory, processes, space ----------------------------------------------------------------------


def test_a_killed_loader_process_is_told_as_one(tmp_path):
    keys = ("steps=100000", "save_every=1", LOADERS)  # it always saves: the blame must not go there
    with Training(tmp_path, *keys, faults="slow-step") as training:
        training.until_text("step 10/")
        os.kill(children(training.process.pid)[0], signal.SIGKILL)
        ended = training.end()
    assert ended.code == 2
    assert "a loader process (pid" in ended.text and "was killed" in ended.text
    assert "cannot write" not in ended.text and "Traceback" not in ended.text


def test_too_little_memory_is_told_with_what_to_type(tmp_path):
    training = Training(
        tmp_path, "data={name: toy, batch_size: 3000, workers: 0, crop: [999, 999]}"
    )
    limit = f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_AS, ({8 << 30},) * 2); "
    start = limit + "os.execv(sys.argv[1], sys.argv[1:])"
    training.command = [sys.executable, "-c", start, *training.command]
    with training:
        ended = training.end()
    assert ended.code == 2, ended.text
    assert "out of memory" in ended.text and "data.batch_size" in ended.text
    assert "bug" not in ended.text


@mounting
@pytest.mark.parametrize("size", ["64k", "100k", "140k"])
def test_a_full_disk_names_the_file_and_the_earlier_checkpoint_goes_on(tmp_path, size):
    disk = tmp_path / "disk"
    disk.mkdir()
    keys = ("steps=100000", "save_every=5", f"out={disk}/run")
    script = (
        'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2; "$@"; code=$?; '
        f"cp -r {disk}/run {tmp_path}/kept; exit $code"
    )
    training = Training(tmp_path, *keys)
    shell = ["unshare", "-m", "sh", "-c", script, "sh", size, str(disk)]
    training.command = [*shell, *training.command]
    with training:
        ended = training.end()
    assert ended.code == 2, ended.text
    assert f"cannot write {disk}/run" in ended.text or f"cannot write into {disk}/run" in ended.text
    assert "No space left on device" in ended.text
    assert "Traceback" not in ended.text and "PytorchStreamWriter" not in ended.text
    last = tmp_path / "kept/checkpoints/last.pt"
    if last.exists():
        assert states(tmp_path / "kept")["step"] % 5 == 0


# -- several processes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "faults", "message"),
    [
        (["optm.lr=1"], "", "optm: unknown key. Did you mean 'optim'?"),
        (["student.checkpoint=nowhere.pt"], "", "there is no checkpoint nowhere.pt"),
        (["data.batch_size=7"], "", "cannot be shared by 2 process(es)"),
        ([], "broken-rank1", "of the second process is broken"),
    ],
)
def test_a_mistake_is_told_once_by_all_processes(tmp_path, arguments, faults, message):
    ended = train(tmp_path, *arguments, faults=faults, processes=2)
    assert ended.text.count(message) == 1, ended.text
    assert ended.text.count("error: ") == 1
    assert "bug in segkd" not in ended.text
    assert "segkd/" not in ended.text.replace(str(Path(__file__).parents[2]), "")


def test_a_killed_process_ends_the_others_without_a_word_about_bugs(tmp_path):
    with Training(tmp_path, *LONG, processes=2, faults="slow-step") as training:
        training.until_text("step 10/")
        os.kill(children(training.process.pid)[-1], signal.SIGKILL)
        ended = training.end()
    assert "bug in segkd" not in ended.text


def test_a_signal_to_two_processes_saves_once_and_one_process_may_go_on(tmp_path):
    with Training(tmp_path, *LONG, processes=2, faults="slow-step") as training:
        training.until_text("step 10/")
        training.send(signal.SIGTERM)
        ended = training.end()
    assert ended.text.count("stopped: SIGTERM") == 1
    saved = step_of(tmp_path)
    with Training(tmp_path, *LONG, faults="slow-step") as training:
        training.until_text(f"resuming from step {saved}")
        training.until_text("was saved by 2 process(es), now there are 1")
