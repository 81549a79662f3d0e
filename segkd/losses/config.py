"""The keys of an entry under ``task.losses`` that all losses share; imports no torch."""

from pydantic import BaseModel, ConfigDict, NonNegativeFloat


class TaskLossConfig(BaseModel):
    """Keys of every entry under ``task.losses``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: NonNegativeFloat = 1.0
