"""Scores on sets that a run never sees: ``eval.others``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from segkd import registry
from segkd.config.other_sets import OtherSet
from segkd.config.schema import RunConfig
from segkd.data.augment_list import build_augment
from segkd.data.base import Dataset, Sample
from segkd.engine.summary import scores
from segkd.errors import ConfigError, folder_named_by
from segkd.evaluation.evaluator import Outcome, Result
from segkd.evaluation.table import nan_to_none, percent
from segkd.models.class_map import class_table
from segkd.runtime import derive_seed

Evaluate = Callable[[nn.Module, Dataset], Outcome]


@dataclass(frozen=True)
class OtherData:
    """A set to be scored on, with the student's classes.

    Attributes:
        dataset: its images and labels.
        about: what was mapped, for the log; empty if the classes are the same.
        missing: the student's classes that the set has no labels of.
    """

    dataset: Dataset
    about: str = ""
    missing: tuple[str, ...] = ()

    def facts(self, result: Outcome) -> dict[str, Any]:
        """What a summary has of a result.

        If the set lacks classes of the student, the score is the mean IoU over the classes that
        are labelled in it: pixels where the student says another class are errors of those.
        """
        score = result.score
        if self.missing and isinstance(result, Result):
            score = result.labelled_miou
        found = {
            **scores(score, result.score_name),
            "score_name": result.score_name,
            "images": result.images,
        }
        if isinstance(result, Result):
            found["iou"] = {name: nan_to_none(value) for name, value in result.iou.items()}
        return found | ({"missing_classes": list(self.missing)} if self.missing else {})


class OtherSets:
    """All sets under ``eval.others`` of a run.

    Args:
        config: the run.
        val_set: its own evaluation set, which has the student's classes.

    Raises:
        SegKDError: a set is missing or damaged, or its classes are not the student's.
    """

    def __init__(self, config: RunConfig, val_set: Dataset) -> None:
        self.sets = {
            name: open_other(name, other, config, val_set)
            for name, other in config.eval.others.items()
        }

    def facts(self, network: nn.Module, evaluate: Evaluate) -> dict[str, Any]:
        """``{"others": {name: facts}}`` of a network; nothing without any set."""
        found = {name: one.facts(evaluate(network, one.dataset)) for name, one in self.sets.items()}
        return {"others": found} if found else {}

    def about(self) -> list[str]:
        """A line for the log for each set."""
        return [
            f"other set {name}: {one.dataset.name} {one.dataset.split}, {len(one.dataset)} images"
            + (f"; {one.about}" if one.about else "")
            for name, one in self.sets.items()
        ]


def about_scores(who: str, facts: Mapping[str, Any]) -> list[str]:
    """A line for the log with a network's scores on other sets, if there are any."""
    found = facts.get("others", {})
    if not found:
        return []
    texts = [
        f"{name} {one['score_name']} {percent(one['score'], missing='undefined')}"
        for name, one in found.items()
    ]
    return [f"{who}, other sets: {', '.join(texts)}"]


def open_other(name: str, other: OtherSet, config: RunConfig, val_set: Dataset) -> OtherData:
    """One set under ``eval.others``; takes and raises what ``OtherSets`` does."""
    data = other.data(config.data)
    with folder_named_by(f"eval.others.{name}.root=FOLDER"):
        dataset = registry.datasets.get(data.name)(data, data.val_split)
    if dataset.task != val_set.task:
        raise ConfigError(
            f"eval.others.{name}: '{data.name}' is a set for {dataset.task}, but the run's own is "
            f"for {val_set.task}: remove it"
        )
    if len(dataset) == 0:
        raise ConfigError(
            f"eval.others.{name}: {data.name}, split '{data.val_split}', has no images. Set "
            f"eval.others.{name}.root or split"
        )
    found = _with_classes(name, other, dataset, val_set)
    if not other.augment:
        return found
    lanes = dataset.task == "lanes"
    try:
        augment = build_augment(other.augment, found.dataset.ignore_index, lanes, data.resize)
        if lanes and augment.geometric:
            raise ConfigError(
                f"augment: {augment.geometric} may move lanes, which are scored where they are "
                "annotated: use transforms that change colours alone, such as fog, blur or noise"
            )
    except ConfigError as error:
        text = str(error).removeprefix("data.")
        raise ConfigError(f"eval.others.{name}.{text}") from None
    return replace(found, dataset=Changed(found.dataset, augment, name))


def _with_classes(name: str, other: OtherSet, dataset: Dataset, own: Dataset) -> OtherData:
    """The set with the classes of the run's own."""
    if other.classes is None:
        if tuple(dataset.classes) == tuple(own.classes):
            return OtherData(dataset)
        if sorted(dataset.classes) != sorted(own.classes) or dataset.task == "lanes":
            lacking = [one for one in dataset.classes if one not in own.classes]
            raise ConfigError(
                f"eval.others.{name}: '{dataset.name}' has {len(dataset.classes)} classes, the "
                f"student {len(own.classes)}, and {len(lacking)} of the set are none of the "
                f"student's ({', '.join(lacking[:4])}{', …' if len(lacking) > 4 else ''}). Say "
                f"which is which: eval.others.{name}.classes={{map: names}} to go by their names, "
                f"or {{map: {{{dataset.classes[0]}: {own.classes[0]}, …}}}}; `segkd data map "
                f"{dataset.name} {own.name} --write FILE` drafts a table"
            )
        table: Mapping[str, str | None] = {one: one for one in dataset.classes}
        return OtherData(Relabelled(dataset, own, table), "classes in another order")
    if dataset.task == "lanes":
        raise ConfigError(f"eval.others.{name}.classes: lanes have no classes to map: remove it")
    given = other.classes
    names = tuple(dataset.classes)
    if isinstance(given.source, list) and tuple(given.source) != names:
        raise ConfigError(
            f"eval.others.{name}.classes.from: these are not the classes of '{dataset.name}': "
            "remove it, the set knows them"
        )
    try:
        found = class_table(given, own.classes, own.name, names, who="set")
    except ConfigError as error:
        raise ConfigError(f"eval.others.{name}.{error}") from None
    relabelled = Relabelled(dataset, own, found.table)
    return OtherData(relabelled, _about(found.table, names, found.unknown), tuple(found.unknown))


def _about(table: Mapping[str, str | None], names: Sequence[str], missing: Sequence[str]) -> str:
    """What becomes of the classes of a set."""
    void = [one for one in names if table.get(one) is None]
    text = f"{len(names) - len(void)} of its {len(names)} classes are the student's"
    text += f"; void: {', '.join(void)}" if void else ""
    return text + (f"; not labelled in it, so not scored: {', '.join(missing)}" if missing else "")


class _Wrapped(Dataset):
    """Another view of a dataset."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset.config, dataset.split)
        self.dataset, self.name, self.task = dataset, dataset.name, dataset.task
        self.classes, self.palette = dataset.classes, dataset.palette
        self.ignore_index = dataset.ignore_index

    def __getattr__(self, name: str) -> Any:
        """What only some sets have, as lane sets their metric, annotations and categories."""
        if name == "dataset":  # a copy that has nothing yet
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def files(self, index: int) -> tuple[Path, Path | None] | None:
        return self.dataset.files(index)


class Relabelled(_Wrapped):
    """A set whose labels are the classes of another one.

    Args:
        dataset: the set.
        own: has the classes, palette and ignore index.
        table: {class of the set: class of ``own``, or None for void}.
    """

    def __init__(self, dataset: Dataset, own: Dataset, table: Mapping[str, str | None]) -> None:
        super().__init__(dataset)
        self.classes, self.palette = tuple(own.classes), own.palette
        self.ignore_index = own.ignore_index
        ids = {name: number for number, name in enumerate(own.classes)}
        found = [table.get(name) for name in dataset.classes]
        void = self.ignore_index
        self._ids = np.array([void if name is None else ids[name] for name in found], np.int32)

    def read(self, index: int) -> Sample:
        """The image, with its label in the other classes."""
        sample = self.dataset.read(index)
        if sample.label is None:
            return sample
        known = (sample.label >= 0) & (sample.label < len(self._ids))
        known &= sample.label != self.dataset.ignore_index
        label = np.full(sample.label.shape, self.ignore_index, np.int32)
        label[known] = self._ids[sample.label[known]]
        return replace(sample, label=label)


class Changed(_Wrapped):
    """A set whose images are transformed, each in the same way whenever it is read.

    Args:
        dataset: the set.
        augment: the transforms.
        name: of the set under ``eval.others``: determines what is drawn.
    """

    def __init__(self, dataset: Dataset, augment: Callable[..., Any], name: str) -> None:
        super().__init__(dataset)
        self._augment, self._title = augment, name

    def read(self, index: int) -> Sample:
        """The transformed image and its label; pixels from beyond its border are void."""
        sample = self.dataset.read(index)
        inside = np.ones(sample.image.shape[:2], bool)
        seed = derive_seed("eval.others", self._title, index)
        image, label, inside, lanes = self._augment(
            sample.image, sample.label, inside, sample.lanes, seed
        )
        if label is not None and not inside.all():
            label = np.where(inside, label, self.ignore_index)
        return replace(sample, image=image, label=label, lanes=lanes)
