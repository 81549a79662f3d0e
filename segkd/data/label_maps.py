"""Label maps among the images of a folder, e.g. in the root of a dataset."""

import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segkd.data.files import same_name
from segkd.data.reading import read_mask
from segkd.errors import DataError

_log = logging.getLogger(__name__)

# Folders of public datasets and of `segkd predict`; one such part of a path is enough.
_FOLDER = re.compile(
    r"gt(fine|coarse)?|ground_?truth|(color_?|bitmap_?)?labels?|(label_?|segmentation_?)?masks?"
    r"|annotations?|\w*annot|segmentation(class(aug)?|object)|stuffthingmaps|laneseg_label\w*"
    r"|labeledapproved\w*|label_?maps?|overlays|probabilities",
    re.IGNORECASE,
)
_ENDING = re.compile(
    r"_(gt(fine|coarse)(_(color|labelids|instanceids|labeltrainids|polygons))?|l|masks?|labels?"
    r"|label_?ids|train_?ids?|color|seg)$",
    re.IGNORECASE,
)
_OF_IMAGES = re.compile(r"_(leftimg8bit|rightimg8bit|sat|image|img)$", re.IGNORECASE)
_MOST_IDS = 64  # distinct values of a label map; grey photographs have more
_GREY = ("1", "L", "P", "I", "I;16")


def without_label_maps(files: Sequence[Path], root: Path) -> list[Path]:
    """The files without label maps of other files, whose number is logged.

    A label map has the name of an image in another folder (except for endings such as
    ``_gtFine_labelIds``), and a telling name or few distinct values. Files without such a partner
    are images.
    """
    groups: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        groups[_stem(file)].append(file)
    ids: dict[Path, bool] = {}
    maps: set[Path] = set()
    for group in (group for group in groups.values() if len(group) > 1):
        named = [file for file in group if _is_named(file, root)]
        if not named and len({file.parent for file in group}) > 1:
            named = [file for file in group if _has_ids(file, ids)]
        if len(named) < len(group):
            maps.update(named)
    if maps:
        folders = sorted({file.relative_to(root).parts[0] for file in maps})
        shown = ", ".join(folders[:3]) + (", …" if len(folders) > 3 else "")
        _log.warning(
            "%s: %d files are label maps of other images there and are skipped (%s). To use "
            "them as images, give their folder",
            *(root, len(maps), shown),
        )
    return [file for file in files if file not in maps]


def _stem(file: Path) -> str:
    """The name that an image shares with its label map."""
    return same_name(_OF_IMAGES.sub("", _ENDING.sub("", file.stem)))


def _is_named(file: Path, root: Path) -> bool:
    above = file.relative_to(root).parts[:-1]
    return bool(_ENDING.search(file.stem)) or any(_FOLDER.fullmatch(part) for part in above)


def _has_ids(file: Path, known: dict[Path, bool]) -> bool:
    """Whether a file has few distinct values; decided by the first file of its folder."""
    if file.parent not in known:
        known[file.parent] = _few_values(file)
    return known[file.parent]


def _few_values(file: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.mode not in _GREY or image.format == "JPEG":
                return False
        return len(np.unique(read_mask(file))) <= _MOST_IDS
    except (DataError, OSError, ValueError, SyntaxError):  # Pillow raises these for damage
        return False
