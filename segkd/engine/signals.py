"""SIGINT, SIGTERM and SIGHUP end a training after the step at hand, on all processes together.

What does not end by itself is ended: while a batch is waited for and in evaluations a signal is
obeyed at once, and a thread ends a process that hangs where no Python code runs.
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

GRACE = 10.0  # seconds without a step until a process counts as hung; more if steps are slow
TOGETHER = 5.0  # seconds that processes have to agree upon a signal while they wait for batches
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # some systems have no SIGHUP


class Stopped(KeyboardInterrupt):
    """A signal came where nothing needs to be finished first.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Signals:
    """Notes that a signal came; the loop asks between two steps.

    Args:
        runtime: the processes that stop together.
        lost: what to tell if the process hangs and has to be ended: what is on the disk.
    """

    def __init__(self, runtime: Runtime, lost: Callable[[], str]) -> None:
        self.runtime, self._lost = runtime, lost
        self._number, self._since, self._times = 0, 0.0, 0
        self._at_once, self._unhurried = False, False
        self._beat, self._longest = time.monotonic(), 0.0

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, a first signal is noted; a second one ends the process at once."""
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
        """The number of a signal that any process got, or 0. Collective.

        Args:
            reading: numbers are read from the device in this step anyway; on GPUs, several
                processes ask each other only then.
        """
        if self.runtime.world == 1:
            return self._number
        if not reading and self.runtime.device.type != "cpu":
            return 0
        mine = torch.tensor(self._number, device=self.runtime.device)
        return int(self.runtime.all_reduce(mine, "max"))

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal raises Stopped wherever it finds the program."""
        self._at_once = True
        try:
            if self._number:
                raise Stopped(self._number)
            yield
        finally:
            self._at_once = False

    @contextlib.contextmanager
    def unhurried(self) -> Iterator[None]:
        """Inside, something is written that may take its time."""
        self._unhurried = True
        try:
            yield
        finally:
            self._unhurried = False
            self.beat()

    def waiting(self) -> None:
        """Called while a batch is waited for. Raises Stopped: it may never come."""
        patience = TOGETHER if self.runtime.world > 1 else 0.0
        if self._number and time.monotonic() - self._since >= patience:
            raise Stopped(self._number)

    def beat(self) -> None:
        """Tells that the training moves: a step is done."""
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
        """Learns of signals through a socket, as handlers wait for the interpreter."""
        receiver, sender = socket.socketpair()
        sender.setblocking(False)
        former = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        if former != -1:  # somebody else's loop needs it: do without
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
            sender.shutdown(socket.SHUT_RDWR)  # loader processes have copies: closing is too little
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
                f"device or another process does not answer) and was ended. {self._lost()}\n"
            )
            sys.stderr.flush()
        end_all()
        os._exit(128 + number)


def _watched_numbers() -> list[int]:
    """Signals that end a program; those ignored from the start, as by nohup, stay ignored."""
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    hangup = getattr(signal, "SIGHUP", None)
    return [n for n in numbers if n != hangup or signal.getsignal(n) is not signal.SIG_IGN]
