"""What the machine does to a command is told for what it is."""

import errno
import os
import re

import pytest
import torch

from segkd import faults
from segkd.errors import DataError, MachineError
from segkd.faults import explained, no_space, of_another_process


def allocation_error():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("DataLoader worker (pid 71) is killed by signal: Killed. "),
            r"a loader process \(pid 71\) was killed, .*out of memory.*data\.workers",
        ),
        (
            RuntimeError("DataLoader worker (pid 71) is killed by signal: Bus error. It is"),
            r"/dev/shm.*--shm-size.*data\.workers=0",
        ),
        (
            RuntimeError("DataLoader worker (pid(s) 71, 72) exited unexpectedly"),
            r"pid 71, 72\) ended unexpectedly",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Segmentation fault. "),
            "by a signal: Segmentation fault",
        ),
        (
            RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space"),
            "/dev/shm is full.*--shm-size",
        ),
        (MemoryError("Unable to allocate 7 GiB"), r"7 GiB\. Use a smaller data\.batch_size"),
        (MemoryError(), r"out of memory: MemoryError\. Use"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory"),
    ],
)
def test_faults_of_the_machine_have_a_message_with_a_repair(error, message):
    fault = explained(error)
    assert isinstance(fault, MachineError)
    assert re.search(message, str(fault)), fault


def test_memory_of_the_cpu_is_told_without_torchs_source_lines():
    text = str(explained(allocation_error()))
    assert "1152921504606846976 bytes" in text and "data.batch_size" in text
    assert "alloc_cpu.cpp" not in text


@pytest.mark.parametrize(
    "error",
    [RuntimeError("size mismatch"), KeyError("a"), DataError("unable to allocate shared memory")],
)
def test_other_errors_stay_what_they_are(error):
    assert explained(error) is None


def test_a_full_disk_names_file_and_repair():
    text = str(no_space("/x/last.pt", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    assert text.startswith("cannot write /x/last.pt: No space left on device. Free some space")
    assert "Get write permission" in str(no_space("/x", PermissionError(errno.EACCES, "denied")))


def test_only_a_run_of_several_processes_has_another_one(monkeypatch):
    lost = RuntimeError("[/pytorch/gloo/pair.cc:534] Connection closed by peer [127.0.0.1]:1")
    assert not of_another_process(lost)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert of_another_process(lost)
    assert of_another_process(torch.distributed.DistBackendError("x"))
    assert not of_another_process(RuntimeError("size mismatch"))


def test_of_the_processes_of_a_run_one_tells(monkeypatch, tmp_path):
    monkeypatch.setattr(faults.tempfile, "gettempdir", lambda: str(tmp_path))
    assert faults.first_to_tell() and faults.first_to_tell()  # alone, it may always
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a/b")
    assert faults.first_to_tell()
    assert not faults.first_to_tell()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "c")
    assert faults.first_to_tell()
    (mark,) = tmp_path.glob("*c*")
    os.utime(mark, (1, 1))  # of a process long ago that had the same number
    assert faults.first_to_tell()
