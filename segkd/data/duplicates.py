"""Images that are in two splits, so that training images would be scored."""

from collections import Counter
from collections.abc import Mapping
from hashlib import blake2b
from itertools import combinations

import numpy as np

from segkd.data.base import Dataset
from segkd.data.findings import Finding
from segkd.data.paired import PairedDataset


def fingerprint(image: np.ndarray) -> str:
    """A hash of the pixels of an image (H, W, 3) uint8, independent of file name and format."""
    digest = blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).reshape(-1).data)
    return digest.hexdigest()


def find_duplicates(splits: Mapping[str, Mapping[str, str]]) -> list[Finding]:
    """One error for each image that is in two splits.

    Args:
        splits: by name of the split, the file of each fingerprint.
    """
    return [
        Finding(
            "error",
            second[mark],
            f"split '{two}' has the same image as split '{one}': {first[mark]}",
            f"Remove it from one of them, preferably from '{one}': scores on it are meaningless.",
        )
        for (one, first), (two, second) in combinations(splits.items(), 2)
        for mark in second
        if mark in first
    ]


def scored_images(unlabelled: Mapping[str, str], scored: Mapping[str, str]) -> list[Finding]:
    """A warning for each unlabelled image that is also in the evaluation split.

    Args:
        unlabelled, scored: the file of each fingerprint.
    """
    repair = "Remove it, unless the student may learn from the very images that it is scored on."
    return [
        Finding("warning", unlabelled[mark], f"is scored as well: {scored[mark]}", repair)
        for mark in unlabelled
        if mark in scored
    ]


def listed_twice(dataset: Dataset) -> list[Finding]:
    """A warning for images that a list contains more than once; lane sets check their own lists."""
    if not isinstance(dataset, PairedDataset) or dataset.task == "lanes":
        return []
    times = Counter(image for image, _ in dataset.pairs)
    twice = [image for image, number in times.items() if number > 1]
    if not twice:
        return []
    text = f"{len(twice)} images are listed more than once, the first: {twice[0]}"
    repair = "Remove the lines from the list: they count as often as they are listed."
    return [Finding("warning", f"split '{dataset.split}'", text, repair)]
