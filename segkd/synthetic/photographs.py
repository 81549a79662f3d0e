"""Street photographs with labels, of any dataset, onto which lanes are painted."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from segkd import registry
from segkd.data.base import DataConfig, Dataset, keys_of_any_set
from segkd.errors import (
    ConfigError,
    DataError,
    MissingSetError,
    did_you_mean,
    folder_named_by,
)
from segkd.refusals import dataset_problems, problem, refusal
from segkd.synthetic.roads.on_photographs import Photograph

# Names of classes in Cityscapes, CamVid, BDD100K, Mapillary and their kind, in small letters.
_ROAD = {"road", "lane", "lane marking", "lane markings", "road marking", "crosswalk", "zebra"}
_TRAFFIC = {
    *("car", "truck", "bus", "train", "motorcycle", "bicycle", "van", "vehicle", "caravan"),
    *("trailer", "person", "pedestrian", "rider", "bicyclist", "motorcyclist", "cyclist"),
}


class PhotographsConfig(BaseModel):
    """The block ``data.photographs:`` of drawn lanes; further keys are keys of the dataset."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(description="a dataset of streets with labels, e.g. cityscapes")
    root: Path | None = Field(None, description="its folder; default: <data root>/<name>")
    split: str = Field("train", description="of the dataset")
    share: float = Field(0.5, gt=0.0, le=1.0, description="of the training scenes that can be one")
    road: list[str] = Field([], description="names of its classes of road; default: by usual names")
    traffic: list[str] = Field([], description="names of what stands on roads; default: likewise")

    @model_validator(mode="after")
    def _known(self, info: ValidationInfo) -> Self:
        shared = keys_of_any_set(self.model_extra)
        # Earlier versions took them, and may have stored them.
        if shared and not (info.context or {}).get("stored"):
            raise refusal(problem((shared[0],), self._extra[shared[0]], _unread(shared[0])))
        try:
            self.data()
        except ConfigError as error:
            raise refusal(problem(("name",), self.name, str(error))) from None
        except ValidationError as error:
            kind = registry.datasets.get(self.name).Config
            raise refusal(*dataset_problems((), error, self, kind)) from None
        return self

    @property
    def _extra(self) -> dict[str, Any]:
        return self.model_extra or {}

    def data(self) -> DataConfig:
        """The block ``data:`` of the dataset.

        Raises:
            ConfigError: there is no such dataset, or it has lanes instead of labels.
            ValidationError: an unknown key, or a wrong value.
        """
        kind = registry.datasets.get(self.name)
        if kind.task == "lanes":
            raise ConfigError(
                f"'{self.name}' has lanes, no labels of roads: name a set of streets, e.g. camvid"
            )
        root = {} if self.root is None else {"root": self.root}
        return kind.Config.model_validate({"name": self.name, **self._extra, **root})


class StreetPhotographs:
    """The photographs of a dataset, with their roads.

    Raises:
        DataError: it has no images, or none of its classes is a road.
    """

    def __init__(self, config: PhotographsConfig) -> None:
        try:
            with folder_named_by("data.photographs.root=FOLDER"):
                self._dataset = registry.datasets.get(config.name)(config.data(), config.split)
        except MissingSetError as error:
            raise error.at("data.photographs") from None
        except DataError as error:  # its advice names keys of `data`
            raise DataError(f"data.photographs (whose keys are meant below): {error}") from None
        if len(self._dataset) == 0:
            raise DataError(f"data.photographs: {config.name} has no images in '{config.split}'")
        self._road = _classes(self._dataset, config.road, _ROAD, "road")
        if not self._road:
            known = ", ".join(self._dataset.classes)
            raise DataError(
                f"data.photographs: no class of {config.name} is called road. Name those that are "
                f"in data.photographs.road. Classes: {known}"
            )
        self._traffic = _classes(self._dataset, config.traffic, _TRAFFIC, "traffic")

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Photograph:
        """A photograph. Raises DataError where it or its label cannot be read."""
        sample = self._dataset.read(index)
        if sample.label is None:
            raise DataError(f"data.photographs: {sample.name} has no label")
        road, traffic = (np.isin(sample.label, ids) for ids in (self._road, self._traffic))
        return Photograph(sample.image, road, traffic)


def _unread(key: str) -> str:
    """Why a key of any block ``data:`` is refused."""
    instead = "`split` names the images" if key.endswith("split") else "remove it here"
    return (
        "would change nothing: photographs are read as they are stored, and `data` says what "
        f"happens to the painted images; {instead}"
    )


def _classes(dataset: Dataset, names: Iterable[str], usual: set[str], key: str) -> list[int]:
    """Ids of the classes that are named, or else of those with a usual name."""
    known = [name.lower() for name in dataset.classes]
    for name in names:
        if name.lower() not in known:
            hint = did_you_mean(name, dataset.classes)
            raise DataError(f"data.photographs.{key}: there is no class '{name}'.{hint}")
    wanted = {name.lower() for name in names} or usual
    return [number for number, name in enumerate(known) if name in wanted]
