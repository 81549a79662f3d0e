"""Seconds by part of a step, without synchronising the device."""

import contextlib
import time
from collections.abc import Iterator

import torch


class StepTimer:
    """Sums the time of named parts; on CUDA with events that are read by ``take``."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def part(self, name: str, host: bool = False) -> Iterator[None]:
        """Times the body.

        Args:
            name: name of the part.
            host: the work runs on the CPU only, such as data loading.
        """
        if self._cuda and not host:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((name, begin, end))
            return
        start = time.perf_counter()
        yield
        self._add(name, time.perf_counter() - start)

    def take(self) -> dict[str, float]:
        """The seconds by part since the last call."""
        if self._events:
            self._events[-1][2].synchronize()
            for name, begin, end in self._events:
                self._add(name, begin.elapsed_time(end) / 1e3)
        taken, self._seconds, self._events = self._seconds, {}, []
        return taken

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds
