"""Gradient ratios of methods to the task loss, after a few trial steps."""

from segkd.config.schema import RunConfig
from segkd.doctor.finding import Finding
from segkd.engine.auto_weight import advice
from segkd.engine.profile import at_work
from segkd.engine.setup import Components
from segkd.engine.trainer import Trainer
from segkd.runtime import Runtime, seed_everything

_STEPS = 8
_IMAGES = 4  # largest batch of a trial step


def pulls(config: RunConfig, parts: Components, found: list[Finding]) -> None:
    """Trains a few steps with small batches, and warns of too large or too small weights.

    Args:
        config: the run.
        parts: its components, which are trained.
        found: findings are appended.

    Raises:
        SegKDError: training fails.
    """
    runtime = Runtime.start(config.runtime.device, config.runtime.precision)
    seed_everything(config.seed, 0)
    images = min(config.data.batch_size // config.optim.accumulate, _IMAGES)
    data = config.data.model_copy(update={"batch_size": images, "workers": 0})
    optim = config.optim.model_copy(update={"accumulate": 1})
    small = at_work(config, _STEPS).model_copy(update={"data": data, "optim": optim})
    trainer = Trainer(small, parts, runtime)
    trainer.objective.prepares = False
    for _ in trainer.steps():
        pass
    for name, pull in trainer.weighted_pulls().items():
        if pull is None:
            continue
        method = trainer.methods[name]
        change = advice(name, pull, method.weight, bool(method.trained_parameters()))
        text = f"gradient {pull:.2g} times that of the task loss after {_STEPS} trial steps"
        found.append(Finding("warning" if change else "ok", f"methods.{name}", text, change or ""))
