"""A trainer that is thrown away, to measure a run or to find what rules it out."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from segkd.config.schema import RunConfig
from segkd.engine.setup import Components
from segkd.engine.trainer import Trainer
from segkd.runtime import Runtime, choose_kernels, limit_threads, preserved_rng, seed_everything

Found = TypeVar("Found")


def on_trial(
    config: RunConfig,
    runtime: Runtime,
    assembled: Callable[[RunConfig, Runtime], Components],
    use: Callable[[Trainer], Found],
) -> Found:
    """What ``use`` makes of a trainer; its memory is free, and random numbers are as before, then.

    Args:
        config: the run; no query of a black box is spent.
        runtime: of this process.
        assembled: makes the components of the run.
        use: must not keep the trainer.

    Raises:
        SegKDError: see ``train_run``.
    """
    teachers = {name: teacher.without_queries() for name, teacher in config.teachers.items()}
    config = config.model_copy(update={"teachers": teachers})
    with preserved_rng():
        limit_threads(config.runtime.threads, config.data.workers)
        choose_kernels(deterministic=config.runtime.deterministic)
        seed_everything(config.seed, 0)
        found = use(Trainer(config, assembled(config, runtime), runtime))
    gc.collect()
    if runtime.device.type == "cuda":
        torch.cuda.empty_cache()
    return found
