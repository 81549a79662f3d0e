"""Names of written files: images of one stem stay apart."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path


def stem_of(name: str) -> str:
    """``sub/a.jpg`` to ``sub/a``; the number of a video frame is unchanged."""
    return name.removesuffix(Path(name).suffix)


def ambiguous_stems(names: Iterable[str]) -> frozenset[str]:
    """Names without ending that several images have; files of these images keep the ending."""
    stems = Counter(map(stem_of, names))
    return frozenset(stem for stem, count in stems.items() if count > 1)
