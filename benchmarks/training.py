"""What benchmarks of trainings share."""

from collections.abc import Iterator, Mapping
from typing import Any

from segkd.config.load import load_config
from segkd.config.schema import RunConfig
from segkd.engine.setup import assemble
from segkd.engine.trainer import Trainer
from segkd.runtime import Runtime, seed_everything


def trainer_of(config: RunConfig | Mapping[str, Any]) -> Trainer:
    """A training that writes no files, on the device and in the precision of its config."""
    run = config if isinstance(config, RunConfig) else load_config(dict(config)).run
    runtime = Runtime.start(run.runtime.device, run.runtime.precision)
    seed_everything(0, runtime.rank)
    return Trainer(run, assemble(run, runtime), runtime)


def seconds_of_steps(trainer: Trainer) -> Iterator[float]:
    """Takes the steps; seconds of each, without those of the body that asks for them."""
    for _ in trainer.steps():
        yield sum(trainer.timer.take().values())
