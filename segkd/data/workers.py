"""Loader processes: monitored while waiting for a batch, and terminated reliably.

torch waits forever for a process that hangs or whose batch was lost, and terminates processes by a
signal that ours ignore. Here samples are the sign of life: each process counts those it begins.
"""

import atexit
import contextlib
import ctypes
import errno
import multiprocessing.util  # before atexit below: its own exit handler joins all children
import signal
import time
import weakref
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawArray
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, get_worker_info

from segkd.errors import MachineError, SegKDError
from segkd.faults import SHARED_MEMORY, explained

POLL = 1.0  # seconds between two checks
STUCK_AFTER = 40  # consecutive checks without a new sample
# Of mallopt: bytes at the end of the heap that are kept, and of the largest array within it.
_TRIM_THRESHOLD, _KEPT = -1, 2**27
_MMAP_THRESHOLD, _LARGEST = -3, 2**25  # the most that glibc allows
_TIMED_OUT = "DataLoader timed out"
Item = TypeVar("Item")
_running: "weakref.WeakSet[Workers]" = weakref.WeakSet()


class Workers:
    """The processes of one loader.

    Args:
        count: number of processes.

    Attributes:
        waiting: called about every second while waiting for a batch; may raise.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.waiting: Callable[[], None] = _nothing
        self._begun = RawArray("L", max(count, 1))
        self._pids = RawArray("L", max(count, 1))
        self._children: list[BaseProcess] = []

    def __getstate__(self) -> dict[str, Any]:
        """The state for spawned processes."""
        return {**vars(self), "waiting": _nothing, "_children": []}

    # -- in a loader process -------------------------------------------------------------------

    def begin(self, worker: int) -> None:
        """Sets up a process: ``worker_init_fn``."""
        import os

        import cv2

        cv2.setNumThreads(0)  # workers share the cores already
        keep_freed_memory()
        # The main process terminates them: a signal to the process group must not kill them
        # before it saves.
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        if hasattr(signal, "set_wakeup_fd"):
            signal.set_wakeup_fd(-1)  # only the main process handles signals
        self._pids[worker] = os.getpid()

    def beat(self) -> None:
        """Counts a sample that this process begins."""
        worker = get_worker_info()
        if worker is not None:
            self._begun[worker.id] += 1

    # -- in the main process -------------------------------------------------------------------

    def loads(self, loader: DataLoader[Item]) -> Iterator[Item]:
        """Iterates over a loader with ``timeout=POLL``.

        Raises:
            MachineError: no process has begun a sample for about 40 seconds, or one died.
        """
        with self._watched():
            try:
                iterator = iter(loader)
                self._children = multiprocessing.active_children()
            except OSError as error:
                if error.errno == errno.ENOSPC:  # locks and queues are in /dev/shm, too
                    text = f"there is no room left in /dev/shm. {SHARED_MEMORY}"
                    raise MachineError(text) from error
                raise
            try:
                while True:
                    try:
                        load = self._next(iterator)
                    except StopIteration:
                        return
                    except BaseException:
                        self.end()  # processes that hang ignore requests to end
                        raise
                    yield load
            finally:
                del iterator  # torch asks its processes to end, but gives up on a busy machine
                self.end()

    def end(self) -> None:
        """Kills processes that are still running."""
        children = {child.pid: child for child in multiprocessing.active_children()}
        for pid in self._pids:
            child = children.get(pid)
            if child is None:
                continue
            with contextlib.suppress(RuntimeError):  # torch's handler reports a child that died
                child.kill()
                child.join(5)

    def _death(self) -> SegKDError | None:
        """The error for a process that died, as torch reports it a moment later."""
        end = time.monotonic() + POLL
        while time.monotonic() < end:
            try:
                for child in self._children:
                    if not child.exitcode:
                        continue
                    how, number = "exited unexpectedly", -child.exitcode
                    if number > 0:
                        how = f"is killed by signal: {signal.strsignal(number)}. "
                    return explained(RuntimeError(f"DataLoader worker (pid {child.pid}) {how}"))
            except RuntimeError as error:  # torch's handler was faster
                return explained(error)
            time.sleep(0.01)
        return None

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        _running.add(self)
        try:
            yield
        finally:
            _running.discard(self)

    def _next(self, iterator: Iterator[Item]) -> Item:
        begun, looks = list(self._begun), 0
        while True:
            try:
                return next(iterator)
            except RuntimeError as error:
                if _TIMED_OUT not in str(error):
                    raise explained(error) or error from error
            except (OSError, EOFError) as error:  # it died before its batch was received
                raise self._death() or error from error
            self.waiting()
            now = list(self._begun)
            looks = looks + 1 if now == begun else 0
            begun = now
            if looks >= STUCK_AFTER:
                raise MachineError(
                    f"loader processes hang: for {looks * POLL:.0f} seconds none of "
                    f"{self.count} has begun to read an image. A disk or network storage may not "
                    "respond, or a library may not work in several processes: data.workers=0 "
                    f"reads in the training process. {SHARED_MEMORY}"
                )


def shared(tensors: list[torch.Tensor]) -> SegKDError | None:
    """Moves tensors of any shape into shared memory; returns an error if that fails.

    torch does it in a thread that only prints errors, so that the batch would never arrive.
    """
    if get_worker_info() is None:
        return None
    try:
        for tensor in tensors:
            tensor.share_memory_()
    except RuntimeError as error:
        return explained(error) or MachineError(f"{error}. {SHARED_MEMORY}")
    return None


def keep_freed_memory() -> None:
    """Lets this process use freed memory again, where its C library is glibc.

    Unless the program has freed larger arrays before, glibc gives the arrays of images back to the
    system and takes them anew, page by page: with decoded images a third of a sample's time.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another system or library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, _KEPT)
        mallopt(_MMAP_THRESHOLD, _LARGEST)


def end_all() -> None:
    """Kills the processes of all loaders in use."""
    for workers in list(_running):
        workers.end()


def _nothing() -> None:
    pass


atexit.register(end_all)
