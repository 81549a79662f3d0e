"""The keys of an entry under ``task.losses``, whatever its loss; read without torch."""

from pydantic import BaseModel, ConfigDict, NonNegativeFloat


class TaskLossConfig(BaseModel):
    """Keys of every entry under ``task.losses``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: NonNegativeFloat = 1.0
