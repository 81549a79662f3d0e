"""Which class of one list is which of another, by what their names mean."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from segkd.models.label_sets import ANYTHING, LabelSet, Meaning, above, forms, singular

How = Literal["same", "wider", "guess", "open"]
_SHOWN = 3


@dataclass(frozen=True)
class Match:
    """What a class of the first list becomes.

    Attributes:
        source: its name.
        target: the class of the second list; None: none.
        how: ``same``: both mean the same, or the target covers it; ``wider``: the target is a wider
            class; ``guess``: by the last word of a name, or
            the only narrower class; ``open``: there is no target.
        why: text about a target that needs a look, or why there is none; may be empty.
    """

    source: str
    target: str | None
    how: How
    why: str = ""


def draft(source: LabelSet, target: LabelSet) -> list[Match]:
    """The match of each class of ``source``, in its order.

    Between two sets that segkd knows meanings count alone; else names that are the same come first.
    """
    places = _places(target)
    own = not (source.name and target.name)
    names = {form: n for n, name in reversed([*enumerate(target.classes)]) for form in forms(name)}
    found = []
    for name, meaning in zip(source.classes, source.meanings, strict=True):
        place = next((names[form] for form in forms(name) if form in names), None)
        if own and place is not None:
            found.append(Match(name, target.classes[place], "same"))
        else:
            found.append(_match(name, meaning, target, places, own))
    return found


def table_of(matches: list[Match], guesses: bool = True) -> dict[str, str | None]:
    """``{source: target}``; without ``guesses``, these have no target."""
    return {one.source: one.target if guesses or one.how != "guess" else None for one in matches}


def _places(target: LabelSet) -> Mapping[str, int]:
    """The class that stands for each concept, else the first that covers it."""
    pairs = list(enumerate(target.meanings))
    found: dict[str, int] = {}
    for number, meaning in sorted(pairs, key=lambda pair: not pair[1].certain):
        if meaning.concept is not None:
            found.setdefault(meaning.concept, number)
    for number, meaning in pairs:
        for concept in meaning.covers:
            found.setdefault(concept, number)
    return found


def _match(
    name: str, meaning: Meaning, target: LabelSet, places: Mapping[str, int], own: bool
) -> Match:
    concept = meaning.concept
    if concept is None:
        return Match(name, None, "open")
    for word in (concept, *singular(concept)):
        if word in places:
            return _found(name, meaning, target, places[word], "same")
    narrower = [
        other
        for other, known in zip(target.classes, target.meanings, strict=True)
        if known.concept is not None and concept in above(known.concept)
    ]
    if own and len(narrower) == 1:
        return Match(name, narrower[0], "guess", "a narrower class")
    for wider in (*above(concept), ANYTHING):
        if narrower:  # what is wider is not what it is: an animal may be a cat, not background
            shown = ", ".join(narrower[:_SHOWN]) + (", …" if len(narrower) > _SHOWN else "")
            return Match(name, None, "open", f"may be {shown}")
        if wider in places:
            return _found(name, meaning, target, places[wider], "wider")
    return Match(name, None, "open")


def _found(name: str, meaning: Meaning, target: LabelSet, number: int, how: How) -> Match:
    theirs = target.meanings[number]
    if not (meaning.certain and theirs.certain):
        return Match(name, target.classes[number], "guess", "by the last word of the name")
    if how == "wider" and set(forms(name)) & set(forms(target.classes[number])):
        how = "same"  # ADE20K's tree is CamVid's, although that one also covers grass
    why = "a wider class" if how == "wider" else ""
    return Match(name, target.classes[number], how, why)
