"""Splits of lane sets: usual names, and what is for validation where no list says so."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

from segkd.data.unlabeled import natural

_log = logging.getLogger(__name__)

STANDARD = ("train", "val", "test")  # splits that sets have without being told


def held_out(images: Sequence[str], share: float) -> set[str]:
    """The images for validation: whole clips (folders), or of a single one its last frames.

    Clips are chosen by a hash of their names, so that added ones move no others; a single one is
    logged. Of two images or more both parts have one at least.

    Args:
        images: paths with slashes.
        share: of the clips, or of the frames of a single clip; 0: none.
    """
    if share == 0:
        return set()
    clips: dict[str, list[str]] = {}
    for image in images:
        clips.setdefault(str(Path(image).parent), []).append(image)
    if len(clips) == 1:
        ordered = sorted(images, key=lambda image: natural(Path(image)))  # frame 2 before frame 10
        number = _of_both(share, len(images))
        if number:
            _log.warning(
                "all %d images are in one folder, '%s': its last %d frames are for validation. "
                "They are of the drive that is trained on, so scores are too good for others. Put "
                "each drive into a folder of its own",
                *(len(images), next(iter(clips)), number),
            )
        return set(ordered[len(images) - number :])
    order = sorted(clips, key=lambda clip: hashlib.sha1(clip.encode()).hexdigest())
    chosen = order[: _of_both(share, len(clips))]
    return {image for clip in chosen for image in clips[clip]}


def _of_both(share: float, count: int) -> int:
    """How many of ``count`` are held out: the share, but neither none nor all of several."""
    return min(max(1, round(share * count)), count - 1)
