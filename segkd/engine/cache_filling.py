"""Filling the caches of teachers: from the first step on, or at once for whole images."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from segkd.config.schema import RunConfig
from segkd.data.base import Dataset
from segkd.data.output_files import Stored, fingerprint
from segkd.data.reading import check_sample
from segkd.data.transforms import resize_image
from segkd.engine.signals import Signals, Stopped
from segkd.engine.teacher_cache import RECORD
from segkd.engine.trainer import Trainer
from segkd.errors import DataError, Interrupted, MachineError
from segkd.files import write_text
from segkd.inference.views import padded_outputs
from segkd.models.frozen import Teacher
from segkd.models.output_cache import OutputCache, in_halves
from segkd.runtime import Runtime


def begin_caches(trainer: Trainer, signals: Signals, say: Callable[[str], None]) -> None:
    """From now on outputs are stored; those for whole images are stored at once.

    Args:
        trainer: of the run.
        signals: one of them ends the filling; what is stored stays.
        say: called with lines for the log.

    Raises:
        SegKDError: an image cannot be read, or an output cannot be written.
        Interrupted: by a signal.
    """
    config, parts, runtime = trainer.config, trainer.parts, trainer.runtime
    for name, cache in parts.teachers.caches.items():
        path = cache.source.outputs.path / RECORD
        try:
            if runtime.is_main:  # again, so that its time says when the cache was used
                write_text(path, json.dumps(cache.facts, indent=2) + "\n")
        except OSError as error:
            raise _cannot_write(name, path.parent, error) from error
        cache.writes, cache.read, cache.computed = True, 0, 0  # not those of the trial step
        if cache.source.kind == "images":
            try:
                with signals.at_once():
                    _fill(config, cache, parts.train_set, runtime, say)
            except Stopped as stopped:
                text = f"stopped while storing the outputs of teacher {name}. Run the same command"
                raise Interrupted(f"{text} again to go on", stopped.number) from None
            runtime.barrier()


def summary_lines(caches: Mapping[str, OutputCache], runtime: Runtime) -> list[str]:
    """Lines for the log at the end of a run; all processes call it, and their counts are added."""
    counts = {name: (cache.read, cache.computed) for name, cache in caches.items()}
    everywhere = runtime.gather_objects(counts)
    lines = []
    for name, cache in caches.items():
        read, computed = (sum(own[name][part] for own in everywhere) for part in (0, 1))
        lines.append(
            f"teacher {name}: cache: {read} outputs were read, {computed} computed in this run; "
            f"{cache.source.outputs.path}"
        )
    return lines


def _fill(
    config: RunConfig,
    cache: OutputCache,
    images: Dataset,
    runtime: Runtime,
    say: Callable[[str], None],
) -> None:
    """Stores the outputs for whole images that are not there; each process has a part of them."""
    outputs = cache.source.outputs
    own = range(runtime.rank, len(images), runtime.world)
    # Read, as a crash of the machine may have torn files.
    todo = [index for index in own if outputs.read(index, 0, None) is None]
    if todo:
        say(f"teacher {cache.name}: cache: storing the outputs for {len(todo)} images first")
    for index in todo:
        with outputs.claimed([(index, 0)]):
            if outputs.read(index, 0, None) is not None:  # by another process
                continue
            try:
                sample = images.read(index)
                check_sample(images, index, sample)
            except DataError:
                if config.data.on_error == "skip":
                    continue
                raise
            stored = _of_whole_image(cache.teacher, sample.image, config, runtime)
            try:
                outputs.write(index, 0, fingerprint(sample.image), stored)
            except OSError as error:
                raise _cannot_write(cache.name, outputs.path, error) from error
            cache.computed += 1


@torch.no_grad()
def _of_whole_image(
    teacher: Teacher, image: np.ndarray, config: RunConfig, runtime: Runtime
) -> Stored:
    seen = resize_image(image, config.data.resize or (image.shape[0], image.shape[1]))
    pixels = torch.from_numpy(np.ascontiguousarray(seen.transpose(2, 0, 1)))[None]
    outputs, extent = padded_outputs(teacher, pixels.to(runtime.device))
    return Stored(in_halves(outputs)[0].cpu().numpy(), extent=extent)


def _cannot_write(name: str, folder: Path, error: OSError) -> MachineError:
    return MachineError(
        f"teachers.{name}.cache: cannot write into {folder}: {error}. Free some space, or choose "
        "another folder by its key `dir`"
    )
