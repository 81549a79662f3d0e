"""Ctrl-C and SIGTERM end a command after the current frame, so that its files are complete."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Stop:
    """Whether a command should end; set by the first signal, a second one ends it at once.

    Attributes:
        number: of the signal, or 0.
    """

    def __init__(self) -> None:
        self.number = 0
        self._event = threading.Event()

    def __call__(self) -> bool:
        """Whether to end."""
        return self._event.is_set()

    def set(self, number: int = 0) -> None:
        """Asks the command to end."""
        self.number = number
        self._event.set()

    def wait(self, seconds: float) -> bool:
        """Waits; returns True as soon as the command should end."""
        return self._event.wait(seconds)


@contextlib.contextmanager
def stoppable() -> Iterator[Stop]:
    """Within the context, SIGINT and SIGTERM are recorded instead of ending the process."""
    stop = Stop()

    def note(number: int, _: FrameType | None) -> None:
        if stop():
            raise KeyboardInterrupt
        stop.set(number)

    try:
        former = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals are the caller's business
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
