"""The contract of a task loss: one Term from a network's outputs and the labels."""

from typing import ClassVar, Generic

from torch import nn
from typing_extensions import TypeVar

from segkd.losses.config import TaskLossConfig
from segkd.structures import Batch, Outputs, Term

__all__ = ["TaskLoss", "TaskLossConfig"]


LossConfigT = TypeVar("LossConfigT", bound=TaskLossConfig, default=TaskLossConfig, covariant=True)


class TaskLoss(nn.Module, Generic[LossConfigT]):
    """Base of all task losses.

    Args:
        config: keys of the entry.
        num_classes: K.

    Attributes:
        name: key under ``task.losses``.
        of_exist: True for losses of ``outputs.exist``, which auxiliary outputs do not have.
        of_rows: True for losses of networks that classify rows of lanes (``outputs.rows``); all
            others are of maps of the image.
        Config: class of ``config``.
    """

    name: ClassVar[str]
    of_exist: ClassVar[bool] = False
    of_rows: ClassVar[bool] = False
    Config: ClassVar[type[TaskLossConfig]] = TaskLossConfig

    def __init__(self, config: LossConfigT, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes

    def forward(self, outputs: Outputs, batch: Batch) -> Term:
        """The unweighted Term of ``outputs`` against the labels of ``batch``."""
        raise NotImplementedError
