"""Maps the probabilities of a teacher with other classes to those of the data.

Several classes of the teacher may map to one of the data: their probabilities are added. Classes
without a counterpart in the data are left over: see ``LeftOver``. Classes of the data that no class
of the teacher maps to are unknown to it: see ``segkd.ops.known``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from segkd import registry
from segkd.config.schema import ClassMap
from segkd.errors import ConfigError, DataError, did_you_mean, shortened
from segkd.models.class_draft import draft, table_of
from segkd.models.label_sets import (
    LabelSet,
    as_set,
    is_set,
    label_set,
    named,
    recognised,
    set_names,
)
from segkd.texts import read_text
from segkd.yaml_tree import parse, show

FLOOR = 1e-8  # of probabilities, before the logarithm
_HELP = (
    "`segkd data map A B --write FILE` drafts a table from names, for `map: FILE`; `map: names` "
    "does so in the run; or give `map: {teacher's class: class of the data}`"
)


@dataclass(frozen=True)
class LeftOver:
    """What is done about classes of a teacher that have no counterpart in the data.

    Attributes:
        rule: ``renormalise``: the other probabilities are divided by their sum; ``void``: so are
            they, and positions where a class left over is the most probable teach nothing.
        most: of renormalise: positions with more probability left over teach nothing.
    """

    rule: Literal["renormalise", "void"] = "renormalise"
    most: float = 0.9


USUAL = LeftOver()


@dataclass(frozen=True)
class ClassTable:
    """Which class of the data each class of a teacher is.

    Attributes:
        given: the teacher's K' class names, in its order.
        classes: the data's K class names.
        table: {teacher's class: class of the data or None}.
        origin: where the table comes from.
        doubtful: text about guesses that are not used.
        left_over: what is done about classes without a counterpart.
    """

    given: tuple[str, ...]
    classes: tuple[str, ...]
    table: Mapping[str, str | None]
    origin: str
    doubtful: str = ""
    left_over: LeftOver = USUAL

    def matrix(self) -> Tensor:
        """(K, K') float32: 1 where the teacher's class k' counts as class k of the data."""
        found = torch.zeros(len(self.classes), len(self.given))
        for number, theirs in enumerate(self.given):  # a name may occur twice
            ours = self.table.get(theirs)
            if ours is not None:
                found[self.classes.index(ours), number] = 1
        return found

    @property
    def unused(self) -> list[str]:
        """Classes of the teacher that are left over."""
        return [name for name in self.given if self.table.get(name) is None]

    @property
    def unknown(self) -> list[str]:
        """Classes of the data that the teacher cannot know."""
        found = set(self.table.values())
        return [name for name in self.classes if name not in found]

    def text(self) -> str:
        """What becomes of each class, and of those without a counterpart."""
        sources: dict[str, list[str]] = {}
        for theirs in self.given:
            ours = self.table.get(theirs)
            if ours is not None:
                sources.setdefault(ours, []).append(theirs)
        same = [ours for ours in self.classes if sources.get(ours) == [ours]]
        others = [
            f"{ours} <- {', '.join(sources[ours])}"
            for ours in self.classes
            if ours in sources and ours not in same
        ]
        count = len(self.given) - len(self.unused)
        text = f"{count} of its {len(self.given)} classes are mapped ({self.origin}): "
        text += "; ".join(filter(None, [*others, ", ".join(same)]))
        if self.unused:
            text += f"; left over ({self._rule()}): {', '.join(self.unused)}"
        text += f"; unknown to it: {', '.join(self.unknown)}" if self.unknown else ""
        return text + (f"; not used, as it is a guess: {self.doubtful}" if self.doubtful else "")

    def facts(self) -> dict[str, Any]:
        """Plain data for the summary of a run."""
        return {
            "map": {name: self.table.get(name) for name in self.given},
            "origin": self.origin,
            "left_over": self._rule(),
            "unknown": self.unknown,
        }

    def _rule(self) -> str:
        if self.left_over.rule == "void":
            return "void where most probable"
        return f"renormalised, void above {self.left_over.most:g}"


def source_classes(config: ClassMap) -> tuple[str, ...]:
    """The teacher's class names, in its order. Raises ConfigError for an unknown dataset."""
    if not isinstance(config.source, str):
        return tuple(config.source)
    if is_set(config.source):
        return label_set(config.source).classes
    if config.source not in registry.datasets:
        known = [*set_names(), *registry.datasets.names()]
        raise ConfigError(
            f"classes.from: segkd has no classes of '{config.source}'."
            f"{did_you_mean(config.source, known)} Or give the teacher's class names as a list"
        )
    classes = getattr(registry.datasets.get(config.source), "classes", None)
    if not classes:
        raise ConfigError(
            f"classes.from: the classes of dataset '{config.source}' are not fixed. Give the "
            "teacher's class names as a list"
        )
    return tuple(classes)


def class_table(
    config: ClassMap,
    classes: Sequence[str],
    dataset: str,
    given: Sequence[str] = (),
    who: str = "teacher",
) -> ClassTable:
    """The table of a config.

    Args:
        config: names, and the table or the file with it.
        classes: names of the data's K classes.
        dataset: name of the dataset, to find a table shipped with segkd.
        given: the teacher's class names, if the teacher says so itself; empty: ``from``.
        who: whose classes these are, for messages.

    Raises:
        ConfigError: no table, unknown class names in it, or no class in common.
    """
    given, doubtful = tuple(given) or source_classes(config), ""
    table: Mapping[str, str | None]
    if isinstance(config.map, Mapping):
        table, origin = config.map, "map"
    elif config.map == "names":
        matches = draft(named(given), named(classes))
        table, origin = table_of(matches, guesses=False), "drafted from names"
        guesses = [f"{one.target} <- {one.source}" for one in matches if one.how == "guess"]
        doubtful = "; ".join(guesses)
    elif config.map is not None:
        table, origin = read_table(config.map), show(config.map)
    else:
        source, target = _source_set(config, given), _target_set(config, classes, dataset)
        table = table_of(draft(source, target))
        origin = f"segkd's, {source.name} to {target.name}"
    for theirs, ours in table.items():
        for name, known, side in ((theirs, given, who), (ours, classes, "data")):
            if name is not None and name not in known:
                hint = did_you_mean(name, known)
                raise ConfigError(f"classes.map: the {side} has no class '{name}'.{hint}")
    if not any(table.values()):
        raise ConfigError(
            f"classes.map: no class of the {who} is mapped to one of the data ({origin}). Its "
            f"classes: {shortened(list(given))}; those of the data: {shortened(list(classes))}"
        )
    rule = LeftOver(config.left_over, config.most_left_over)
    return ClassTable(given, tuple(classes), table, origin, doubtful, rule)


def class_matrix(config: ClassMap, classes: Sequence[str], dataset: str) -> Tensor:
    """(K, K') of ``ClassTable.matrix``, for the arguments of ``class_table``."""
    return class_table(config, classes, dataset).matrix()


def unknown_to(matrix: Tensor) -> tuple[int, ...]:
    """Ids of the data's classes that no class maps to, of a (K, K') matrix."""
    return tuple((~matrix.bool().any(1)).nonzero().flatten().tolist())


def mapped(shares: Tensor, matrix: Tensor) -> Tensor:
    """Probabilities (B, K, h, w) of the data's classes, not normalised.

    Args:
        shares: (B, K', h, w) of the teacher.
        matrix: (K, K') of ``ClassTable``.
    """
    return torch.einsum("kc,bchw->bkhw", matrix.to(shares), shares)


def counted(shares: Tensor, matrix: Tensor, left_over: LeftOver) -> Tensor | None:
    """(B, h, w) bool: positions at which a teacher teaches; None: at all.

    Args:
        shares: probabilities (B, K', h, w) of the teacher's classes; their sum may be below 1.
        matrix: (K, K') of ``ClassTable``.
        left_over: the rule.
    """
    kept = matrix.to(shares.device).bool().any(0)
    if left_over.rule == "void":
        return kept[shares.argmax(1)]
    if left_over.most == 1:
        return None
    total = shares.sum(1)
    return (shares * kept[:, None, None]).sum(1) >= (1 - left_over.most) * total


def log_shares(shares: Tensor) -> Tensor:
    """Logarithms (B, K, h, w) of probabilities, divided by their sum over K."""
    return safe_log(shares / shares.sum(1, keepdim=True).clamp_min(FLOOR))


def safe_log(probabilities: Tensor) -> Tensor:
    """The logarithm of probabilities of any shape, finite at 0."""
    return probabilities.clamp_min(FLOOR).log()


def read_table(path: Path) -> Mapping[str, str | None]:
    """A file of lines ``teacher's class: class``. Raises ConfigError."""
    path = path.expanduser()
    try:
        table = parse(read_text(path), show(path)).plain()
    except DataError as error:
        raise ConfigError(f"classes.map: {error}") from None
    if not isinstance(table, dict) or not all(
        isinstance(k, str) and (v is None or isinstance(v, str)) for k, v in table.items()
    ):
        raise ConfigError(f"classes.map: {path}: expected lines `teacher's class: class`")
    return table


def _source_set(config: ClassMap, given: Sequence[str]) -> LabelSet:
    if isinstance(config.source, str) and is_set(config.source):
        return as_set(given, label_set(config.source)) or label_set(config.source)
    found = recognised(given)
    if found is None:
        what = config.source if isinstance(config.source, str) else ""
        raise ConfigError(
            f"classes: segkd has no table from {what or shortened(list(given))}; it has them from "
            f"{', '.join(set_names())}. {_HELP}"
        )
    return found


def _target_set(config: ClassMap, classes: Sequence[str], dataset: str) -> LabelSet:
    wanted = config.to or (dataset if is_set(dataset) else "")
    if config.to and not is_set(config.to):
        hint = did_you_mean(config.to, set_names())
        raise ConfigError(f"classes.to: segkd has no classes of '{config.to}'.{hint} {_HELP}")
    found = as_set(classes, label_set(wanted)) if wanted else recognised(classes)
    if found is None:
        raise ConfigError(
            f"classes: segkd has no table to the classes of the data, {shortened(list(classes))}"
            f"{f': they are not those of {wanted}' if wanted else ''}. {_HELP}"
        )
    return found
