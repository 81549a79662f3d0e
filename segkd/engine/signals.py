"""SIGINT, SIGTERM and SIGHUP stop a training after the current step, on all processes together.

During evaluations and while waiting for a batch a signal takes effect at once. A watchdog thread
ends a process that hangs outside of Python code.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import torch

from segkd.data.workers import end_all
from segkd.faults import first_to_tell
from segkd.runtime import Runtime

GRACE = 10.0  # seconds without a step after which a process counts as hung; more if steps are slow
TOGETHER = 5.0  # seconds in which processes waiting for batches can agree on a signal
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # some systems have no SIGHUP


class Stopped(KeyboardInterrupt):
    """A signal arrived at a point where the process may stop at once.

    Attributes:
        number: number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Signals:
    """Records signals; the training loop polls between two steps.

    Args:
        runtime: the processes that stop together.
        lost: returns the message for a process that hangs and is ended: what has been saved.
    """

    def __init__(self, runtime: Runtime, lost: Callable[[], str]) -> None:
        self.runtime, self._lost = runtime, lost
        self._number, self._since, self._times = 0, 0.0, 0
        self._at_once, self._unhurried = False, False
        self._beat, self._longest = time.monotonic(), 0.0

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Within the context, a first signal is recorded; a second one ends the process at once."""
        try:
            former = {number: signal.signal(number, self._note) for number in _watched_numbers()}
        except ValueError:  # not in the main thread: signals are the caller's business
            yield
            return
        try:
            with self._guarded(set(former)):
                yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def agreed(self, reading: bool) -> int:
        """The number of a signal that any process received, or 0. Collective.

        Args:
            reading: whether numbers are read from the device in this step anyway; on GPUs,
                several processes communicate only then.
        """
        if self.runtime.world == 1:
            return self._number
        if not reading and self.runtime.device.type != "cpu":
            return 0
        mine = torch.tensor(self._number, device=self.runtime.device)
        return int(self.runtime.all_reduce(mine, "max"))

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within the context, a signal raises Stopped immediately."""
        self._at_once = True
        try:
            if self._number:
                raise Stopped(self._number)
            yield
        finally:
            self._at_once = False

    @contextlib.contextmanager
    def unhurried(self) -> Iterator[None]:
        """Within the context, the watchdog allows for slow writing."""
        self._unhurried = True
        try:
            yield
        finally:
            self._unhurried = False
            self.beat()

    def waiting(self) -> None:
        """Called while waiting for a batch. Raises Stopped after a signal."""
        patience = TOGETHER if self.runtime.world > 1 else 0.0
        if self._number and time.monotonic() - self._since >= patience:
            raise Stopped(self._number)

    def beat(self) -> None:
        """Reports to the watchdog that a step is done."""
        now = time.monotonic()
        self._longest, self._beat = max(self._longest, now - self._beat), now

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._number:
            self._times += 1
            raise KeyboardInterrupt
        self._number, self._since = number, time.monotonic()
        if self._at_once:
            raise Stopped(number)

    # -- the thread that ends what hangs -------------------------------------------------------

    @contextlib.contextmanager
    def _guarded(self, numbers: set[int]) -> Iterator[None]:
        """Receives signals through a socket, since handlers wait for the interpreter."""
        receiver, sender = socket.socketpair()
        sender.setblocking(False)
        former = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        if former != -1:  # another event loop uses it: no watchdog
            signal.set_wakeup_fd(former)
        done = threading.Event()
        guard = threading.Thread(target=self._guard, args=(receiver, numbers, done), daemon=True)
        self._beat = time.monotonic()
        guard.start()
        try:
            yield
        finally:
            done.set()
            if former == -1:
                signal.set_wakeup_fd(-1)
            # Loader processes have copies of the socket, so that closing it is not enough.
            sender.shutdown(socket.SHUT_RDWR)
            guard.join()
            sender.close()
            receiver.close()

    def _guard(self, receiver: socket.socket, numbers: set[int], done: threading.Event) -> None:
        number = 0
        while not number:
            got = receiver.recv(64)
            if not got:
                return
            number = next((one for one in got if one in numbers), 0)
        came = time.monotonic()
        while not done.wait(0.5):
            patience = GRACE + 2 * self._longest
            silent = time.monotonic() - max(came, self._beat)
            if self._times:
                patience = 2.0  # asked twice
            if silent > patience and (self._times or not self._unhurried):
                self._end(number, silent)

    def _end(self, number: int, silent: float) -> None:
        if first_to_tell():
            name = signal.Signals(number).name
            sys.stderr.write(
                f"stopped: {name}: the process did not react for {silent:.0f} seconds (a disk, the "
                f"device or another process does not respond) and was ended. {self._lost()}\n"
            )
            sys.stderr.flush()
        end_all()
        os._exit(128 + number)


def _watched_numbers() -> list[int]:
    """Signals that stop a run; SIGHUP stays ignored if it was, as under nohup."""
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    hangup = getattr(signal, "SIGHUP", None)
    return [n for n in numbers if n != hangup or signal.getsignal(n) is not signal.SIG_IGN]
