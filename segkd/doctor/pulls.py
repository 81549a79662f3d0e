"""Gradient ratios of methods to the task loss, and what they cost, in a few trial steps."""

from segkd.config.schema import RunConfig
from segkd.doctor.finding import Finding
from segkd.doctor.trainers import trainer_of
from segkd.engine.auto_weight import advice
from segkd.engine.profile import at_work
from segkd.engine.setup import Components
from segkd.runtime import Runtime, seed_everything

_STEPS = 8
_IMAGES = 4  # largest batch of a trial step
_DEAR, _NOTICED = 1.0, 0.01  # student's steps, and seconds a step: tiny networks prove nothing
_OWN = ("student", "task", "backward", "update")  # parts of a step that a run without methods has


def pulls(config: RunConfig, parts: Components, found: list[Finding]) -> None:
    """Trains a few steps with small batches, and warns of too large or too small weights, and of
    methods that take longer than the student.

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
    trainer = trainer_of(small, parts, runtime)
    trainer.objective.prepares = False
    taken: dict[str, float] = {}
    for number, _ in enumerate(trainer.steps()):
        parts_of_step = trainer.timer.take()
        if number:  # kernels are chosen in the first
            taken = {part: taken.get(part, 0.0) + value for part, value in parts_of_step.items()}
    own = sum(taken.get(part, 0.0) for part in _OWN)
    for name, pull in trainer.weighted_pulls().items():
        method, said = trainer.methods[name], []
        changes: list[str | None] = []
        if pull is not None:
            said += [f"gradient {pull:.2g} times that of the task loss after {_STEPS} trial steps"]
            changes += [advice(name, pull, method.weight, bool(method.trained_parameters()))]
        if own:
            seconds = taken.get(f"method/{name}", 0.0)
            said += [f"it takes {seconds / own:.2g} of a student's step of {images} images"]
            if seconds / own > _DEAR and seconds > _NOTICED * (_STEPS - 1):
                changes += [cheaper(method.name)]
        fix = "; ".join(change for change in changes if change)
        found.append(Finding("warning" if fix else "ok", f"methods.{name}", ", ".join(said), fix))


def cheaper(method: str) -> str:
    """Where to look if a method takes longer than the student that it teaches."""
    return (
        f"it is slower than the student: `segkd explain {method}` shows keys that sample or pool "
        "(e.g. positions, pool, scope, node_limit) and its usual cost"
    )
