"""Endings of files that can be written for a source, and names that look like such files."""

from pathlib import Path
from typing import Literal

from segkd.data.paired import IMAGE_ENDINGS
from segkd.inference.media import VIDEO_ENDINGS

Kind = Literal["image", "folder", "video", "stream"]

WHAT = {
    "image": "an image",
    "folder": "a folder of images",
    "video": "a video",
    "stream": "a camera or stream",
}
ENDINGS: dict[str, tuple[str, ...]] = {  # of one overlay
    "image": IMAGE_ENDINGS,
    "folder": (),
    "video": VIDEO_ENDINGS,
    "stream": VIDEO_ENDINGS,
}
_LONGEST = 5  # letters; what is longer is part of a folder's name


def is_file_name(out: Path) -> bool:
    """Whether a path looks like that of a file: it ends as ``.gif`` does, not as ``v1.2``."""
    ending = out.suffix[1:]
    return 2 <= len(ending) <= _LONGEST and ending[0].isalpha() and ending.isalnum()


def unknown_ending(out: Path, endings: tuple[str, ...]) -> str:
    """What works instead of an ending that is neither of an image nor of a video, or ""."""
    if out.suffix.lower() in (*IMAGE_ENDINGS, *VIDEO_ENDINGS) or not is_file_name(out):
        return ""
    known = f". Files can be {', '.join(endings)}" if endings else ""
    return f"{known}. If {out.name} is to be a folder, end it with a slash: {out}/"
