"""Divides images into training and validation, where a folder does not."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from segkd.data.layout import Layout, Pair
from segkd.data.split_lists import divided_by_lists, tell_unused_lists
from segkd.data.unlabeled import natural

SHARE = 0.2  # of validation
_FEWEST_GROUPS, _LARGEST_GROUP = 4, 0.6  # a group is a folder or a recording
Seen = Callable[[Pair], frozenset[int]]


def divide(layout: Layout, seen: Seen, notes: list[str]) -> tuple[dict[str, list[Pair]], str]:
    """Pairs by split: as folders say, as list files say, or divided here.

    Args:
        layout: with at least two pairs.
        seen: the values in a pair's mask; empty if it was not read.
        notes: gets lines for the user about list files.

    Returns:
        Pairs of train, val and, if there are any, test; and how they were divided, for a comment.

    Raises:
        DataError: a line of a list file may mean several images, or a list has no pair.
    """
    by_split = dict(layout.pairs)
    unnamed = by_split.pop("", [])
    if unnamed and not by_split:
        listed = divided_by_lists(layout, notes)
        if listed:
            return listed, "as the list files say: " + ", ".join(listed)
    else:
        tell_unused_lists(layout.root, notes)
    train = by_split.get("train", []) + unnamed
    if by_split.get("val") and train:
        return {**by_split, "train": train}, "as the folders say"
    source = train or by_split.get("val") or by_split.get("test") or []
    ordered = sorted(source, key=lambda pair: natural(pair[0].relative_to(layout.root)))
    first, second, how = _divided(ordered, layout.root, seen)
    found = {"train": first, "val": second}
    if train and "test" in by_split:
        found["test"] = by_split["test"]
        how += "; the folder `test` is left untouched"
    return found, how


def _divided(pairs: Sequence[Pair], root: Path, seen: Seen) -> tuple[list[Pair], list[Pair], str]:
    """Training, validation, and how they were divided."""
    wanted = max(1, round(SHARE * len(pairs)))
    groups: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[_group(pair[0].relative_to(root))].append(pair)
    largest = max(map(len, groups.values()))
    ways: list[tuple[list[Pair], str]] = []
    if len(groups) >= _FEWEST_GROUPS and largest <= _LARGEST_GROUP * len(pairs) and largest > 1:
        own = _some_groups(list(groups.values()), wanted)
        ways.append((own, "whole folders or recordings, about a fifth of the images"))
    ways.append(
        (list(pairs[-wanted:]), "the last fifth by name: frames beside each other are nearly equal")
    )
    every = max(2, round(1 / SHARE))
    spread = list(pairs[every - 1 :: every]) or list(pairs[-1:])
    everything = _values(pairs, seen)
    for own, how in ways:
        rest = _without(pairs, own)
        if _values(own, seen) == everything == _values(rest, seen):
            return rest, own, how
    how = "every fifth image: other divisions leave a class out of one part"
    return _without(pairs, spread), spread, how


def _some_groups(groups: Sequence[list[Pair]], wanted: int) -> list[Pair]:
    """Groups with about ``wanted`` pairs, spread over all of them, at least one."""
    order = list(groups[:: max(1, len(groups) // 5)]) + list(groups)
    found: list[Pair] = []
    for group in order:
        if group[0] in found or len(found) + len(group) > 1.3 * wanted:
            continue
        found += group
        if len(found) >= wanted:
            break
    return found or min(groups, key=len)


def _group(path: Path) -> str:
    """The folder and the name without its last number: ``drive3/a_0`` of ``drive3/a_012.png``."""
    stem = re.sub(r"\d+$", "", path.stem)
    if not stem.strip("_-. "):  # names of numbers only
        stem = ""
    return f"{path.parent.as_posix()}/{stem}"


def _values(pairs: Iterable[Pair], seen: Seen) -> frozenset[int]:
    found: set[int] = set()
    for pair in pairs:
        found |= seen(pair)
    return frozenset(found)


def _without(pairs: Sequence[Pair], others: Iterable[Pair]) -> list[Pair]:
    gone = set(others)
    return [pair for pair in pairs if pair not in gone]
