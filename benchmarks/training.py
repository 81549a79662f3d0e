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


def small_training(
    steps: int, student: str, teacher: Mapping[str, Any], methods: Mapping[str, Any]
) -> Trainer:
    """A training on the CPU with four drawn scenes a step; the student is an FPN on an encoder."""
    return trainer_of(
        {
            "out": "unused",
            "steps": steps,
            "data": {"name": "streets", "batch_size": 4, "workers": 0, "crop": [128, 256]}
            | {"train_images": 8, "cache": 512},
            "student": {"arch": "fpn", "encoder": student, "weights": None},
            "teachers": {"main": teacher},
            "methods": methods,
            "runtime": {"device": "cpu"},
        }
    )


def seconds_of_steps(trainer: Trainer) -> Iterator[float]:
    """Takes the steps; seconds of each, without those of the body that asks for them."""
    for _ in trainer.steps():
        yield sum(trainer.timer.take().values())
