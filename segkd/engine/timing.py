"""Seconds by part of a step, without synchronising the device."""

import contextlib
import statistics
import time
from collections import deque
from collections.abc import Iterator

import torch

from segkd.cpus import interruptions

_WAITING = "data"  # the part in which the CPU waits for images, on CUDA beside the last step
_WATCHED = "backward"  # the part whose seconds depend on nothing but the machine
_WINDOW = 20  # its latest times that are compared
_ERRATIC = 3.0  # a time in ten is so many times the median or more
_INTERRUPTED = 100.0  # a second and thread; benchmarks/threads.py: 20 alone, 400 beside other work


class StepTimer:
    """Sums the time of named parts; on CUDA with events that are read by ``take``.

    The CPU runs ahead of a device, so that it waits for the next images while the last step is
    still computed. Parts are cut to the seconds that the steps took as a whole.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._whole = 0.0
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._watched: deque[float] = deque(maxlen=_WINDOW)
        self._interruptions: deque[int] = deque(maxlen=_WINDOW)
        self._told = False

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Times the body, a step with all of its parts."""
        start = time.perf_counter()
        yield
        self._whole += time.perf_counter() - start

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
        start, before = time.perf_counter(), interruptions()
        yield
        seconds = time.perf_counter() - start
        self._add(name, seconds)
        if name == _WATCHED:
            self._watched.append(seconds)
            self._interruptions.append(interruptions() - before)

    def take(self) -> dict[str, float]:
        """The seconds by part since the last call."""
        if self._events:
            start = time.perf_counter()
            self._events[-1][2].synchronize()
            self._whole += time.perf_counter() - start
            for name, begin, end in self._events:
                self._add(name, begin.elapsed_time(end) / 1e3)
            twice = sum(self._seconds.values()) - self._whole
            if _WAITING in self._seconds and self._whole and twice > 0:
                self._seconds[_WAITING] = max(0.0, self._seconds[_WAITING] - twice)
        taken, self._seconds, self._events, self._whole = self._seconds, {}, [], 0.0
        return taken

    def doubts(self) -> Iterator[str]:
        """Says once that other work uses the cores of steps on the CPU."""
        times, threads = sorted(self._watched), torch.get_num_threads()
        if self._told or threads == 1 or len(times) < _WINDOW:
            return
        usual, slow = statistics.median(times), times[_WINDOW * 9 // 10 - 1]
        often = sum(self._interruptions) / sum(times)
        if slow >= _ERRATIC * usual:
            seen = f"steps are erratic: a backward pass takes {usual:.2g} s, and one in ten "
            seen += f"{slow:.2g} s or more"
        elif often > _INTERRUPTED * threads:
            seen = f"steps are interrupted {often:.0f} times a second"
        else:
            return
        self._told = True
        yield (
            f"{seen}. Other work, or processes that load data, use the CPUs, so that {threads} "
            "threads wait for each other: try runtime.threads=1"
        )

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds
