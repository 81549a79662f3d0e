"""Where the seconds and the memory of a training step go, measured on a few steps."""

import contextlib
import ctypes
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from segkd.config.recipe import PlannedRun
from segkd.config.schema import ModelConfig, RunConfig, TeacherConfig
from segkd.engine.setup import assemble
from segkd.engine.timing import StepTimer
from segkd.engine.trainer import Trainer
from segkd.metrics.cost import memory_in_use, peak_memory, reset_peak_memory
from segkd.runtime import Runtime, limit_threads, seed_everything

WARMUP = 2  # steps that are not measured: workers start, kernels are chosen
_MEMORY_STEPS = 2  # measured apart, since reading memory takes time
_SLACK = 2**22  # bytes


@dataclass(frozen=True)
class Part:
    """One part of a step. ``memory``: bytes that it takes at most beyond what was in use."""

    name: str
    seconds: float
    share: float
    memory: int | None


@dataclass(frozen=True)
class Profile:
    """Means over the measured steps.

    Attributes:
        name: of the run.
        device: on which it was measured.
        batch_size: images in a step, over all processes.
        steps: measured.
        seconds_per_step: by the clock; the parts add up to it.
        peak_memory: in bytes, of all parts.
        parts: in the order of a step; ``other`` is what lies between them.
        pulls: by entry of ``methods:``, the norm of its weighted gradient at its taps over that
            of the task loss, after these steps; None where there is none to compare.
        weights: by entry, its factor of all terms.
        fresh: entries with layers of their own, which have hardly learned yet.
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
    """Trains a few steps with every method at work, and writes nothing.

    Args:
        config: a run; entries of ``methods:`` that would start later start at once.
        steps: to be measured, after some that are not.
        progress: called as ``progress(done, total)``.

    Raises:
        SegKDError: as ``train_run``.
    """
    total = WARMUP + steps + _MEMORY_STEPS
    config = at_work(config, total)
    runtime = Runtime.start(config.runtime.device, config.runtime.precision)
    limit_threads(config.runtime.threads, config.data.workers)
    seed_everything(config.seed, 0)
    trainer = Trainer(config, assemble(config, runtime), runtime)
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
    """Notes the most memory that each part takes beyond what was in use when it began.

    On CUDA what tensors take. Else the resident size of this process, where its peak can be
    reset (Linux), after the C library has given back what it keeps for later use (glibc).
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._device = device
        self.peaks: dict[str, int] = {}

    @contextlib.contextmanager
    def part(self, name: str, host: bool = False) -> Iterator[None]:
        _give_back_what_is_free()
        reset_peak_memory(self._device)
        before, earlier = memory_in_use(self._device), peak_memory(self._device)
        yield
        if before is not None and earlier < before + _SLACK:  # the peak was reset
            taken = max(0, peak_memory(self._device) - before)
            self.peaks[name] = max(self.peaks.get(name, 0), taken)


def at_work(config: RunConfig, steps: int) -> RunConfig:
    """The run with all of its methods at work from the first step on."""
    methods = {
        name: entry.model_copy(update={"start": 0, "warmup": 0, "decay": "none"})
        for name, entry in config.methods.items()
    }
    return config.model_copy(update={"steps": steps, "methods": methods})


def stand_in(planned: PlannedRun, plan: Sequence[PlannedRun]) -> RunConfig:
    """The run of a recipe with untrained networks for those that are not trained yet.

    They cost the same.
    """
    config = planned.config
    sources = {str(other.config.out): other.config.student for other in plan}
    untrained = {out: student for out, student in sources.items() if not _has_best(out)}
    teachers = dict(config.teachers)
    for name, teacher in teachers.items():
        if teacher.checkpoint in untrained:
            teachers[name] = _as_teacher(untrained[teacher.checkpoint])
    student = untrained.get(config.student.checkpoint or "", config.student)
    init_from = config.init_from if config.init_from not in untrained else None
    changes = {"teachers": teachers, "student": student, "init_from": init_from}
    return config.model_copy(update=changes)


def _as_teacher(student: ModelConfig) -> TeacherConfig:
    keys = {"arch", "encoder", "checkpoint", "normalize", "options"}
    return TeacherConfig.model_validate(student.model_dump(include=keys))


def _give_back_what_is_free() -> None:
    """Makes memory that is taken again count again."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _has_best(out: str) -> bool:
    return (Path(out) / "checkpoints" / "best.pt").exists()


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
