"""Names of the classes of data sets, and what they mean: the files in ``segkd/class_maps``."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import cast

from segkd.errors import ConfigError, did_you_mean
from segkd.yaml_tree import parse

ANYTHING = "anything"  # the concept above all others: VOC's background covers it
_ALIASES = {  # name: the set, and how many of its first classes
    "bdd100k": ("cityscapes", 19),
    "mapillary_65": ("mapillary", 65),
}


@dataclass(frozen=True)
class Meaning:
    """What a class stands for.

    Attributes:
        concept: the concept; None: none.
        covers: further concepts that belong to it.
        certain: False if it is a guess from the last word of the name.
    """

    concept: str | None
    covers: tuple[str, ...] = ()
    certain: bool = True


@dataclass(frozen=True)
class LabelSet:
    """Names of classes in their order, with their meanings.

    Attributes:
        name: of the data set; empty for other names.
        classes: K names.
        meanings: of each.
    """

    name: str
    classes: tuple[str, ...]
    meanings: tuple[Meaning, ...]


def set_names() -> list[str]:
    """Names of all sets that segkd knows; those that repeat another one come last."""
    folder = files("segkd") / "class_maps"
    found = {entry.name.removesuffix(".yaml") for entry in folder.iterdir()}
    return [*sorted(found - {"concepts"}), *_ALIASES]


def is_set(name: str) -> bool:
    """Whether ``label_set`` knows a name."""
    return _plain_key(name) in set_names()


@cache
def label_set(name: str) -> LabelSet:
    """The classes of a data set by its name. Raises ConfigError for an unknown one."""
    key = _plain_key(name)
    if key not in set_names():
        raise ConfigError(f"segkd has no classes of '{name}'.{did_you_mean(key, set_names())}")
    file, count = _ALIASES.get(key, (key, None))
    rows = list(_file(file).items())[:count]
    return LabelSet(key, tuple(row[0] for row in rows), tuple(_meaning(*row) for row in rows))


def named(classes: Sequence[str]) -> LabelSet:
    """The meanings of any names: those of the set that they are, else word by word."""
    found = recognised(classes)
    return found or LabelSet("", tuple(classes), tuple(meaning_of(name) for name in classes))


def recognised(classes: Sequence[str]) -> LabelSet | None:
    """The set whose classes these are, in any order and spelling; None: of none.

    Returns:
        Their own names and order, with the meanings of the set.
    """
    for name in set_names():
        found = as_set(classes, label_set(name))
        if found is not None:
            return found
    return None


def as_set(classes: Sequence[str], known: LabelSet) -> LabelSet | None:
    """``recognised`` for one set."""
    if len(classes) != len(known.classes):
        return None
    places = {plain(name): number for number, name in enumerate(known.classes)}
    concepts: dict[str | None, int] = {}
    for number, meaning in enumerate(known.meanings):
        concepts.setdefault(meaning.concept, number)
    order: list[int | None] = []
    for name in classes:
        place = next((places[form] for form in forms(name) if form in places), None)
        order.append(concepts.get(meaning_of(name).concept) if place is None else place)
    if None in order or len(set(order)) < len(order):
        return None
    meanings = tuple(known.meanings[number] for number in order if number is not None)
    return LabelSet(known.name, tuple(classes), meanings)


def meaning_of(name: str) -> Meaning:
    """What a name means by itself; a name that no set and no list of words has means itself."""
    words = _words()
    for form in forms(name):
        if form in words:
            return Meaning(words[form])
    last = plain(name).split()[-1:]
    for form in forms(last[0]) if last else []:
        if form in words and " " in plain(name):
            return Meaning(words[form], certain=False)
    return Meaning(plain(name) or None, tuple(singular(plain(name))))


def above(concept: str) -> Iterator[str]:
    """The concepts above one, the nearest first, without ``ANYTHING``."""
    wider = _concepts()["wider"]
    while concept in wider:
        concept = wider[concept]
        yield concept


def plain(name: str) -> str:
    """A name without case, punctuation and repeated blanks."""
    return " ".join(re.sub(r"[\W_]+", " ", name.casefold()).split())


def forms(name: str) -> list[str]:
    """What to look a name up by: itself, its synonyms (``sidewalk, pavement``), their singulars."""
    parts = [name, *re.split(r"[,;/]", name), name.split("--")[-1]]
    found = []
    for part in filter(None, map(plain, parts)):
        found += [part, *singular(part), part.replace(" ", "")]
    return list(dict.fromkeys(found))


def singular(word: str) -> list[str]:
    """What a word may be the plural of."""
    found = [word[:-3] + "y"] if word.endswith("ies") else []
    found += [word[:-2]] if word.endswith("es") else []
    return found + ([word[:-1]] if word.endswith("s") and not word.endswith("ss") else [])


def _plain_key(name: str) -> str:
    return name.casefold().replace("-", "_").replace(" ", "_")


def _meaning(name: str, value: object) -> Meaning:
    if isinstance(value, list):
        return Meaning(value[0] if value else None, tuple(value[1:]))
    return Meaning(plain(name) if value is None else str(value))


@cache
def _file(name: str) -> Mapping[str, object]:
    path = files("segkd") / "class_maps" / f"{name}.yaml"
    return parse(path.read_text(encoding="utf-8"), path.name).plain()


@cache
def _concepts() -> Mapping[str, Mapping[str, str]]:
    return cast("Mapping[str, Mapping[str, str]]", _file("concepts"))


@cache
def _words() -> Mapping[str, str]:
    """The concept of each known word; a concept's own name comes first, then those of sets."""
    wider: Mapping[str, str] = _concepts()["wider"]
    found = {name: name for name in (*wider, *wider.values())}
    for concept, others in _concepts()["words"].items():
        for word in (concept, *others):
            found.setdefault(word, concept)
    for name in set_names():
        known = label_set(name)
        for own, meaning in zip(known.classes, known.meanings, strict=True):
            for concept in filter(None, (meaning.concept, *meaning.covers)):
                found.setdefault(concept, concept)
            if meaning.concept:
                found.setdefault(plain(own), meaning.concept)
    del found[ANYTHING]
    return {word.replace(" ", ""): concept for word, concept in found.items()} | found
