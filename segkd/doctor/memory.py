"""Memory of a training step: measured with one and two images, extrapolated to the batch."""

import math
import shutil
from pathlib import Path

import torch

from segkd.config.schema import OptimConfig, RunConfig
from segkd.doctor.finding import Finding
from segkd.doctor.trainers import trainer_of
from segkd.engine.setup import Components
from segkd.engine.single_value import is_single_value
from segkd.errors import ConfigError
from segkd.metrics.cost import memory_in_use, peak_memory, reset_peak_memory
from segkd.runtime import Runtime, seed_everything

_GIB = 2**30
_SHARE = 0.9  # of the available memory; the rest is for loaders and the system
_STATES = {"sgd": 1, "adamw": 2}  # tensors of an optimiser per parameter


def trial_step(config: RunConfig, parts: Components, found: list[Finding]) -> None:
    """Appends findings about memory and disk space, from a training step with few images.

    Args:
        config: the run.
        parts: its components.
        found: findings are appended.

    Raises:
        SegKDError: the step fails.
    """
    runtime = Runtime.start(config.runtime.device, config.runtime.precision)
    seed_everything(config.seed, 0)
    images = config.data.batch_size // config.optim.accumulate
    try:
        first, second = 1, min(2, images)
        peaks = [_peak(config, parts, runtime, count) for count in (first, second)]
    except ConfigError as error:
        if not (isinstance(error.__cause__, ValueError) and is_single_value(error.__cause__)):
            raise
        if images == 1:
            text, _, repair = str(error).partition(". ")
            found.append(Finding("error", "batch", text, repair))
            return
        first, second = 2, min(3, images)
        peaks = [_peak(config, parts, runtime, count) for count in (first, second)]
    state = _state_bytes(config, parts)
    per_image = max(0, peaks[1] - peaks[0]) / max(1, second - first)
    needed = peaks[0] + (images - first) * per_image + state
    found.append(_memory(needed, per_image, images, available(runtime.device), config.optim))
    found.append(_disk(config, parts, state))


def available(device: torch.device) -> int | None:
    """Bytes that this process can use, including those in use; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    facts = Path("/proc/meminfo")
    if not facts.exists():
        return None
    line = next(line for line in facts.read_text().splitlines() if line.startswith("MemAvailable"))
    free = int(line.split()[1]) * 1024 + (memory_in_use() or 0)
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(free, int(text)) if text.isdecimal() else free


def existing_above(path: Path) -> Path:
    """The nearest existing folder: ``path`` or one of its parents."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _peak(config: RunConfig, parts: Components, runtime: Runtime, images: int) -> int:
    """Peak memory in bytes of a dry step with a number of images."""
    data = config.data.model_copy(update={"batch_size": images, "workers": 0})
    optim = config.optim.model_copy(update={"accumulate": 1})
    reset_peak_memory(runtime.device)
    trainer_of(config.model_copy(update={"data": data, "optim": optim}), parts, runtime)
    return peak_memory(runtime.device)


def _state_bytes(config: RunConfig, parts: Components) -> int:
    """Bytes of the optimiser's state."""
    modules = (parts.student, parts.objective)
    trained = sum(p.numel() for m in modules for p in m.parameters() if p.requires_grad)
    return 4 * trained * _STATES.get(config.optim.name, 2)


def _memory(
    needed: float, per_image: float, images: int, free: int | None, optim: OptimConfig
) -> Finding:
    text = (
        f"about {needed / _GIB:.2f} GiB with {images} images per (micro-)step, "
        f"{per_image / _GIB:.3f} GiB per image"
    )
    if free is None:
        return Finding("ok", "memory", text)
    text += f"; available {free / _GIB:.2f} GiB"
    if needed <= _SHARE * free:
        return Finding("ok", "memory", text)
    fits = images - math.ceil((needed - _SHARE * free) / max(per_image, 1))
    repair = "Use a smaller data.crop or other networks"
    if fits >= 1:
        parts = next(n for n in range(1, images + 1) if images % n == 0 and images // n <= fits)
        repair = (
            f"data.batch_size={fits * optim.accumulate}, or "
            f"optim.accumulate={parts * optim.accumulate}"
        )
    return Finding("error" if needed > free else "warning", "memory", text, repair)


def _disk(config: RunConfig, parts: Components, state: int) -> Finding:
    """Space for last.pt and best.pt, of which old and new ones exist while writing."""
    student, methods = (
        sum(v.numel() * v.element_size() for v in module.state_dict().values())
        for module in (parts.student, parts.objective)
    )
    needed = 2 * (student * (2 if config.ema is None else 3) + methods + state)
    assert config.out is not None  # checked with the run folder
    above = existing_above(Path(config.out))
    free = shutil.disk_usage(above).free
    text = f"checkpoints take about {needed / _GIB:.2f} GiB, free {free / _GIB:.1f} GiB at {above}"
    if needed <= free:
        return Finding("ok", "disk", text)
    return Finding("error", "disk", text, "Free some space, or choose another folder: out=FOLDER")
