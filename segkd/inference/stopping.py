"""Ctrl-C and SIGTERM end a command so that its files are complete: after a frame, or at once."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from segkd.errors import Interrupted


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

    with _handled(note):
        yield stop


@contextlib.contextmanager
def stopped_with(told: Callable[[], str]) -> Iterator[None]:
    """Within the context, SIGINT and SIGTERM end the command at once, with one line.

    Args:
        told: returns what is left, and how to go on.

    Raises:
        Interrupted: after a signal.
    """
    received = 0

    def end(number: int, _: FrameType | None) -> None:
        nonlocal received
        received = number
        raise KeyboardInterrupt

    with _handled(end):
        try:
            yield
        except KeyboardInterrupt:
            if not received:  # raised by others, e.g. a training that was asked twice
                raise
            raise Interrupted(told(), received) from None


@contextlib.contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within the context, SIGINT and SIGTERM call a handler."""
    try:
        former = {
            number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)
        }
    except ValueError:  # not in the main thread: signals are the caller's business
        yield
        return
    try:
        yield
    finally:
        for number, before in former.items():
            signal.signal(number, before)
