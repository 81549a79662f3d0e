"""Trainers of the doctor's trial steps, which share the components of one run."""

from segkd.config.schema import RunConfig
from segkd.engine.optim import require_grad
from segkd.engine.setup import Components
from segkd.engine.trainer import Trainer
from segkd.runtime import Runtime


def trainer_of(config: RunConfig, parts: Components, runtime: Runtime) -> Trainer:
    """A trainer, also of components that an earlier one has had.

    A trainer freezes what methods train themselves between its steps, such as critics. A second one
    would take them for frozen by ``train:``, and leave out their steps.
    """
    for method in parts.objective.methods.values():
        require_grad(method.inner_parameters(), True)
    return Trainer(config, parts, runtime)
