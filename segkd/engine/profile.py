"""Time and memory of each part of a training step, measured over a few steps."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from segkd.config.schema import RunConfig
from segkd.engine.setup import assemble
from segkd.engine.timing import StepTimer
from segkd.engine.trainer import Trainer
from segkd.metrics.cost import memory_in_use, peak_memory, reset_peak_memory
from segkd.runtime import Runtime, choose_kernels, limit_threads, seed_everything

WARMUP = 2  # steps before measuring, in which workers start and kernels are chosen
_MEMORY_STEPS = 2  # measured separately, since reading memory takes time
_SLACK = 2**22  # bytes


@dataclass(frozen=True)
class Part:
    """One part of a step.

    Attributes:
        name: as in metrics.csv, without ``seconds/``.
        seconds: per step.
        share: of the step, 0 to 1.
        memory: peak in bytes above the memory in use when the part begins; None: unknown.
    """

    name: str
    seconds: float
    share: float
    memory: int | None


@dataclass(frozen=True)
class Profile:
    """Means over the measured steps.

    Attributes:
        name: name of the run.
        device: the device measured on.
        batch_size: images per step, over all processes.
        steps: number of measured steps.
        seconds_per_step: wall time; the parts add up to it.
        peak_memory: bytes, over all parts.
        parts: in the order of a step; ``other`` is the rest.
        pulls: by entry of ``methods:``, the norm of its weighted gradient at its taps divided by
            that of the task loss, after these steps; None where one of them is missing.
        weights: by entry, its factor of all terms.
        fresh: entries with layers of their own, which are hardly trained yet.
    """

    name: str
    device: str
    batch_size: int
    steps: int
    seconds_per_step: float
    peak_memory: int
    parts: tuple[Part, ...]
    pulls: dict[str, float | None] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    fresh: tuple[str, ...] = ()

    @property
    def images_per_second(self) -> float:
        """Over all processes."""
        return self.batch_size / self.seconds_per_step

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"images_per_second": self.images_per_second}


def profile_run(
    config: RunConfig,
    *,
    name: str = "",
    steps: int = 10,
    progress: Callable[[int, int], None] | None = None,
) -> Profile:
    """Trains a few steps with every method active; writes nothing.

    Args:
        config: a run; all entries of ``methods:`` start at step 0.
        name: name of the run in the result.
        steps: number of measured steps; a few more are run before and after.
        progress: called as ``progress(done, total)``.

    Raises:
        SegKDError: see ``train_run``.
    """
    total = WARMUP + steps + _MEMORY_STEPS
    config = at_work(config, total)
    teachers = {key: teacher.without_queries() for key, teacher in config.teachers.items()}
    config = config.model_copy(update={"teachers": teachers})
    runtime = Runtime.start(config.runtime.device, config.runtime.precision)
    limit_threads(config.runtime.threads, config.data.workers)
    choose_kernels(deterministic=config.runtime.deterministic)
    seed_everything(config.seed, 0)
    trainer = Trainer(config, assemble(config, runtime), runtime)
    trainer.objective.prepares = False
    trained = _counted(trainer.steps(), progress, total)
    _take(trained, WARMUP)
    reset_peak_memory(runtime.device)
    trainer.timer.take()
    runtime.synchronize()
    begin = time.perf_counter()
    _take(trained, steps)
    runtime.synchronize()
    seconds = (time.perf_counter() - begin) / steps
    timed = {part: value / steps for part, value in trainer.timer.take().items()}
    peak = peak_memory(runtime.device)
    trainer.timer = MemoryTimer(runtime.device)
    _take(trained, _MEMORY_STEPS)
    timed["other"] = max(0.0, seconds - math.fsum(timed.values()))
    memory = trainer.timer.peaks
    parts = tuple(
        Part(part, value, value / seconds, memory.get(part)) for part, value in timed.items()
    )
    return Profile(
        name,
        str(runtime.device),
        config.data.batch_size,
        steps,
        seconds,
        peak,
        parts,
        trainer.weighted_pulls(),
        {entry: method.weight for entry, method in trainer.methods.items()},
        tuple(n for n, method in trainer.methods.items() if method.trained_parameters()),
    )


class MemoryTimer(StepTimer):
    """Records the peak memory of each part above the memory in use when it began.

    On CUDA the memory of tensors; otherwise the resident size of this process, if its peak can be
    reset (Linux), after the C library has released its free memory (glibc).

    Attributes:
        peaks: bytes by part.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._device = device
        self.peaks: dict[str, int] = {}

    @contextlib.contextmanager
    def part(self, name: str, host: bool = False) -> Iterator[None]:
        """Measures the body; see ``StepTimer.part``."""
        reset_peak_memory(self._device)
        before, earlier = memory_in_use(self._device), peak_memory(self._device)
        yield
        if before is not None and earlier < before + _SLACK:  # the peak was reset
            taken = max(0, peak_memory(self._device) - before)
            self.peaks[name] = max(self.peaks.get(name, 0), taken)


def at_work(config: RunConfig, steps: int) -> RunConfig:
    """The run with all methods active from the first step on, and ``steps`` steps."""
    methods = {
        name: entry.model_copy(update={"start": 0, "warmup": 0, "decay": "none"})
        for name, entry in config.methods.items()
    }
    return config.model_copy(update={"steps": steps, "methods": methods})


def _counted(
    steps: Iterator[None], progress: Callable[[int, int], None] | None, total: int
) -> Iterator[None]:
    for done, _ in enumerate(steps, start=1):
        if progress is not None:
            progress(done, total)
        yield


def _take(steps: Iterator[None], count: int) -> None:
    for _ in range(count):
        next(steps)
