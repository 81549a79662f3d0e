"""Images that stand in two splits: what is learned from them cannot be scored on them."""

from collections.abc import Mapping
from hashlib import blake2b
from itertools import combinations

import numpy as np

from segkd.data.findings import Finding


def fingerprint(image: np.ndarray) -> str:
    """What decoded images (H, W, 3) have in common if and only if their pixels are equal.

    Names, kinds of file and notes inside the files do not matter.
    """
    digest = blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image))
    return digest.hexdigest()


def find_duplicates(splits: Mapping[str, Mapping[str, str]]) -> list[Finding]:
    """One error for each image that two splits have.

    Args:
        splits: by name of the split, the file of each fingerprint.
    """
    return [
        Finding(
            "error",
            second[mark],
            f"split '{two}' has the same image as split '{one}': {first[mark]}",
            f"Remove it from one of them, best from '{one}': its score says nothing otherwise.",
        )
        for (one, first), (two, second) in combinations(splits.items(), 2)
        for mark in second
        if mark in first
    ]
