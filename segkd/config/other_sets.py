"""``eval.others``: further sets on which students and teachers are scored, and never trained."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from segkd import registry
from segkd.config.networks import ClassMap
from segkd.data.base import DataConfig

OF_ANY_SET = ("resize", "workers", "on_error")  # keys of `data` that hold for another set, too


class OtherSet(BaseModel):
    """One further set; keys that are not named here are keys of its dataset, as under ``data:``."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str | None = Field(None, description="dataset; default: data.name")
    root: Path | None = Field(None, description="folder of the set; default: as of `data`")
    split: str | None = Field(None, description="of the set; default: data.val_split")
    classes: ClassMap | None = Field(
        None, description="for a set with other classes: which of the student's classes each is"
    )
    augment: list[Any] = Field(
        [], description="transforms of albumentations, e.g. fog, the same in every evaluation"
    )

    def data(self, own: DataConfig) -> DataConfig:
        """The block ``data:`` of the set, whose ``val_split`` is scored.

        Of the same dataset, its keys are the defaults; of another one, only its sizes and workers.

        Args:
            own: the run's own block.

        Raises:
            ConfigError: there is no such dataset.
            ValidationError: an unknown key, or a wrong value.
        """
        name = self.name or own.name
        plain = own.model_copy(update={"unlabeled": None}).model_dump()
        keys = plain if name == own.name else {key: plain[key] for key in OF_ANY_SET}
        keys = {**keys, "name": name, **(self.model_extra or {}), "augment": self.augment}
        keys |= {} if self.root is None else {"root": self.root}
        keys |= {} if self.split is None else {"val_split": self.split}
        return registry.datasets.get(name).Config.model_validate(keys)
