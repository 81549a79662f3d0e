"""Explains failures of the machine: killed loader processes, out of memory, shared memory.

torch and the system report these with exceptions of any type. Imports nothing heavy, for the
command line.
"""

import contextlib
import errno
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from segkd.errors import MachineError, SegKDError

SHARED_MEMORY = (
    "Loader processes pass batches through /dev/shm. Enlarge it (in containers: docker run "
    "--shm-size=8g, or --ipc=host), or load in the training process: data.workers=0"
)
_MEMORY = (
    "Use a smaller data.batch_size or data.crop (optim.accumulate keeps the batch), fewer "
    "data.workers, or a smaller data.cache"
)
_REPORTED = 600.0  # seconds after which a report is of another run
_ALLOCATION = ("can't allocate memory", "not enough memory", "Insufficient memory", "bad_alloc")
_LOADER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) "
    r"(?:is killed by signal: ([^.]+)|exited unexpectedly)"
)
_PEER = re.compile(
    r"Connection (?:closed|reset) by peer|gloo[/\\]|NCCL|ProcessGroup|Socket closed|"
    r"TCPStore|Broken pipe"
)


def explained(error: BaseException) -> SegKDError | None:
    """The error to show to the user, if a command failed because of the machine; else None."""
    if isinstance(error, SegKDError):
        return None
    text = str(error)
    worker = _LOADER.search(text)
    if worker:
        return MachineError(_of_worker(*worker.groups()))
    if "unable to allocate shared memory" in text or "unable to mmap" in text:
        return MachineError(f"/dev/shm is full. {SHARED_MEMORY}")
    if _out_of_memory(error, text):
        return MachineError(f"out of memory: {_first_line(error, text)}. {_MEMORY}")
    return None


@contextlib.contextmanager
def machine_faults() -> Iterator[None]:
    """Raises MachineError instead of exceptions that the machine caused."""
    try:
        yield
    except Exception as error:
        fault = explained(error)
        if fault is None:
            raise
        raise fault from error


def no_space(path: object, error: OSError) -> MachineError:
    """The error of a file that could not be written, with a remedy."""
    why = error.strerror or str(error)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    repair = "Free some space there" if full else "Get write permission there"
    return MachineError(
        f"cannot write {path}: {why}. {repair}, then run the same command again: it resumes from "
        "the last checkpoint"
    )


def of_another_process(error: BaseException) -> bool:
    """Whether an error only reports that another process of the run ended."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return False
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"DistError"} or ("RuntimeError" in kinds and _PEER.search(str(error))))


def _of_worker(pids: str, how: str | None) -> str:
    who = f"a loader process (pid {pids.strip()})"
    again = "Run the same command again: it resumes from the last checkpoint"
    if how is None:
        return (
            f"{who} ended unexpectedly. A line above may give the reason; with data.workers=0 it "
            f"is shown where it happens. {again}"
        )
    if "Bus" in how:
        return f"{who} ended: /dev/shm is full. {SHARED_MEMORY}"
    if "Killed" in how:
        return (
            f"{who} was killed, most likely because the system ran out of memory (see `dmesg`), or "
            f"by somebody. {_MEMORY}. {again}"
        )
    return (
        f"{who} was ended by a signal: {how}. With data.workers=0 the sample that caused it is "
        f"read in the training process. {again}"
    )


def _out_of_memory(error: BaseException, text: str) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return any(sign in text for sign in _ALLOCATION)


def _first_line(error: BaseException, text: str) -> str:
    """The line with the requested size, which follows torch's checks and tracebacks."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    sized = [line for line in lines if "allocate" in line or "memory" in line.lower()]
    line = (sized or lines)[-1] if len(lines) > 1 else lines[0]
    return line.rpartition("DefaultCPUAllocator: ")[2].rstrip(".")


def first_to_tell() -> bool:
    """Whether no other process of this run on this machine has reported yet why it ends.

    torchrun's processes share a parent; a file named after it marks that one has reported.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    run = os.environ.get("TORCHELASTIC_RUN_ID", ""), os.environ.get("MASTER_PORT", "")
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    name = re.sub(r"\W+", "_", "-".join(("segkd", str(os.getppid()), *run, again)))
    path = Path(tempfile.gettempdir()) / f"{name}.told"
    try:
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _REPORTED:  # an earlier process of the same id
                path.unlink()
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True
    return True
