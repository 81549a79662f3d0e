"""One process trains in a folder: refused where another lives, taken over where it died."""

import errno
import json
import os
import subprocess
import sys
import threading
import time
from unittest.mock import Mock

import pytest

from segkd.engine import lock
from segkd.engine.lock import RunLock
from segkd.errors import ConfigError, TrainingError


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "STALE", 0.6)


def left_behind(folder, **changes):
    """The lock of another process."""
    folder.mkdir(exist_ok=True)
    facts = {"token": "theirs", "started": "yesterday", **lock._me(), **changes}
    (folder / ".lock").write_text(json.dumps(facts))


def dead():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_second_process_is_refused_with_host_and_pid(tmp_path):
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    first.acquire()
    me = lock._me()
    with pytest.raises(ConfigError, match=rf"pid {me['pid']} on {me['host']}.*out=runs/NAME"):
        second.acquire()
    second.release()  # what it has not got it does not give away
    assert (tmp_path / ".lock").exists()
    first.release()
    second.acquire()
    second.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes", [{"pid": dead}, {"born": "1"}, {"pid": "?"}])
def test_the_lock_of_a_dead_process_is_taken_over_at_once(tmp_path, changes):
    changes = {key: value() if callable(value) else value for key, value in changes.items()}
    left_behind(tmp_path, **changes)
    own = RunLock(tmp_path)
    own.acquire(lambda text: pytest.fail(text))
    own.check()
    own.release()


def test_a_process_that_ended_but_was_not_looked_at_is_dead(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    while lock._facts(process.pid)[0] != "Z":
        time.sleep(0.01)
    left_behind(tmp_path, pid=process.pid, born=lock._born(process.pid))
    own = RunLock(tmp_path)
    own.acquire()
    own.release()
    process.wait()


@pytest.mark.parametrize("content", [None, b"", b"[]", b"\xff"])
def test_the_lock_of_another_machine_is_stale_when_nobody_touches_it(tmp_path, content):
    left_behind(tmp_path, machine="elsewhere", host="elsewhere")
    if content is not None:
        (tmp_path / ".lock").write_bytes(content)
    told, own = [], RunLock(tmp_path)
    own.acquire(told.append)
    assert "may still be training here" in told[0]
    own.release()


def test_the_lock_of_another_machine_is_held_when_it_is_touched(tmp_path):
    left_behind(tmp_path, machine="elsewhere", host="elsewhere", pid=12)
    done = threading.Event()

    def touch():
        while not done.wait(0.1):
            os.utime(tmp_path / ".lock")

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        with pytest.raises(ConfigError, match="pid 12 on elsewhere"):
            RunLock(tmp_path).acquire(lambda text: None)
    finally:
        done.set()
        thread.join()


def test_the_holder_touches_its_lock(tmp_path):
    own = RunLock(tmp_path)
    own.acquire()
    os.utime(tmp_path / ".lock", (1, 1))
    end = time.monotonic() + 20
    while (tmp_path / ".lock").stat().st_mtime < 2:
        assert time.monotonic() < end
        time.sleep(0.02)
    own.release()


def test_a_holder_that_stood_still_notices_that_it_was_replaced(tmp_path):
    own = RunLock(tmp_path)
    own.acquire()
    left_behind(tmp_path, pid=12, host="elsewhere")
    with pytest.raises(TrainingError, match="taken over by another process: pid 12 on elsewhere"):
        own.check()
    own.release()
    assert json.loads((tmp_path / ".lock").read_text())["token"] == "theirs"


def test_a_lock_that_cannot_be_read_for_a_moment_stops_nobody(tmp_path, monkeypatch):
    """Network storage answers with ESTALE or EIO now and then: whose lock it is, is not known."""
    own = RunLock(tmp_path)
    own.acquire()
    with monkeypatch.context() as patched:
        patched.setattr(type(own.path), "read_bytes", Mock(side_effect=OSError(errno.ESTALE, "")))
        own.check()
    own.release()
    assert not own.path.exists()
