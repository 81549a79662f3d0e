"""What a task loss is: one Term from a network's outputs and the labels."""

from typing import ClassVar

from torch import nn

from segkd.losses.config import TaskLossConfig
from segkd.structures import Batch, Outputs, Term

__all__ = ["TaskLoss", "TaskLossConfig"]


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
