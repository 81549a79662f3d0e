"""What the benchmarks share: interleaved medians, and peak memory in a process of its own."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

MIB = 2**20


def synchronize(device: str) -> None:
    """Waits for a GPU; a CPU has nothing to wait for."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def seconds_of(
    function: Callable[[], object], device: str, clock: Callable[[], float] = time.perf_counter
) -> float:
    synchronize(device)
    start = clock()
    function()
    synchronize(device)
    return clock() - start


def clock_of(device: str) -> Callable[[], float]:
    """CPU time where one thread computes, of which other processes take nothing; else the time.

    Not for what waits: for other processes, files or sleep.
    """
    alone = device == "cpu" and torch.get_num_threads() == 1
    return time.process_time if alone else time.perf_counter


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    repeats: int,
    device: str,
    *,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each, taken in turns; the first rounds are for warming up."""
    taken = {name: [] for name in functions}
    for turn in range(warmup + repeats):
        for name, function in functions.items():
            seconds = seconds_of(function, device, clock)
            if turn >= warmup:
                taken[name].append(seconds)
    return {name: statistics.median(values) for name, values in taken.items()}


def peak_of(function: Callable[[], object], device: str) -> float:
    """MiB over what is there already; on a CPU call it once in a fresh process, see below."""
    if device == "cpu":
        before = _peak_resident_size()
        function()
        return _peak_resident_size() - before
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    return (torch.cuda.max_memory_allocated() - before) / MIB


def in_fresh_process(*arguments: str) -> float:
    """The number that the same script prints with these arguments."""
    command = [sys.executable, sys.argv[0], *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def _peak_resident_size() -> float:
    """MiB. Unlike getrusage's, Linux's VmHWM is not inherited from the parent process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
