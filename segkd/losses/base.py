"""What a task loss is: one Term from a network's outputs and the labels."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, NonNegativeFloat
from torch import nn

from segkd.structures import Batch, Outputs, Term


class TaskLossConfig(BaseModel):
    """Keys of every entry under ``task.losses``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: NonNegativeFloat = 1.0


class TaskLoss(nn.Module):
    """Base of all task losses. ``name`` is the key under ``task.losses``.

    ``of_exist`` is True for losses of ``outputs.exist``, which auxiliary outputs do not have.
    """

    name: ClassVar[str]
    of_exist: ClassVar[bool] = False
    Config: ClassVar[type[TaskLossConfig]] = TaskLossConfig

    def __init__(self, config: TaskLossConfig, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes

    def forward(self, outputs: Outputs, batch: Batch) -> Term:
        """The unweighted Term of ``outputs`` against what ``batch`` says is there."""
        raise NotImplementedError
