"""SIGINT and SIGTERM end a training after the step at hand, on all processes together."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

import torch

from segkd.engine.runtime import Runtime


class Signals:
    """Notes that a signal came; the loop asks between two steps."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime, self._number = runtime, 0

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, a first signal is noted; a second one ends the process at once."""

        def note(number: int, frame: FrameType | None) -> None:
            if self._number:
                raise KeyboardInterrupt
            self._number = number

        try:
            former = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread: signals are the caller's business
            former = {}
        try:
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
