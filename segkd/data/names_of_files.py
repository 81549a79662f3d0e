"""What the names of folders and files say: is it an image or a mask, and of which split?"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Role = Literal["image", "mask", "other"]

_MASKS = re.compile(
    r"masks?(png)?|maskspng|labels?|lbls?|ann(ot)?(ation)?s?|annos?|gts?|gtfine|gtcoarse"
    r"|groundtruth|truth|segs?|segmentations?|segmentationclass(aug)?|labelids|labeltrainids"
    r"|targets?|stuffthingmaps|semantic|parsing"
)
_IMAGES = re.compile(
    r"images?|imgs?|rgb|photos?|pictures?|frames?|inputs?|(jpeg|png)images|leftimg8bit|raw|sat"
)
_OTHERS = re.compile(
    r"instances?|instanceids|segmentationobject|polygons|overlays?|vis|visualizations?|depths?"
    r"|disparity|previews?"
)
_COLORED = re.compile("colou?r(s|ed)?")  # a coloured copy, if said of a mask
_SPLITS = {
    **dict.fromkeys(("train", "training", "trn", "tr"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_LONG_SPLITS = [name for name in _SPLITS if len(name) > 2]


@dataclass(frozen=True)
class Reading:
    """What a path below the root of a set says.

    Attributes:
        role: of the file, as far as its names say; None if they do not.
        split: train, val, test, or empty.
        place: words of its folders that say neither.
    """

    role: Role | None
    split: str
    place: tuple[str, ...]


def read_path(path: Path) -> Reading:
    """Reads the folders of a path below the root of a set; the file's own name is left out."""
    role: Role | None = None
    split, place = "", []
    for part in path.parts[:-1]:
        own, here, rest = _read_part(part)
        role, split = own or role, here or split
        place += rest
    return Reading(role, split, tuple(place))


def role_of_stem(stem: str) -> Role | None:
    """What the last or first words of a file's name say: ``a_mask`` is a mask."""
    words = _words(stem)
    if len(words) < 2:
        return None
    found = [_role(word) for word in words]
    if found[-1] == "other" or (_COLORED.fullmatch(words[-1]) and "mask" in found[:-1]):
        return "other"
    return found[-1] or found[0]


def bare_stem(stem: str, role: Role) -> str:
    """A name without the words at its ends that say the role: ``a`` of ``a_gtFine_labelIds``."""
    parts = re.split(r"([_\-. ]+)", stem)  # words and what separates them
    while len(parts) > 1 and _role(parts[-1].lower()) == role:
        parts = parts[:-2]
    while len(parts) > 1 and _role(parts[0].lower()) == role:
        parts = parts[2:]
    word = re.fullmatch(r"([A-Za-z]+)(\d+)", parts[0])
    if word and _role(word[1].lower()) == role:  # mask12 and image12
        parts[0] = word[2]
    return "".join(parts).casefold()


def _read_part(part: str) -> tuple[Role | None, str, list[str]]:
    """Role, split and other words of the name of a folder."""
    roles: list[Role] = []
    split, rest = "", []
    for word in _words(part):
        own = _role(word)
        here = _SPLITS.get(word.rstrip("0123456789"), "")
        if own is None and not here:
            own, here = _joined(word)
        if own:
            roles.append(own)
        split = here or split
        if not (own or here):
            rest.append(word)
    order: tuple[Role, ...] = ("other", "mask", "image")  # `image_labels` are masks
    for role in order:
        if role in roles:
            return role, split, rest
    return None, split, rest


def _joined(word: str) -> tuple[Role | None, str]:
    """Role and split of a word such as ``trainannot`` or ``maskstest``."""
    for name in _LONG_SPLITS:
        for rest in (word.removeprefix(name), word.removesuffix(name)):
            if rest != word and _role(rest):
                return _role(rest), _SPLITS[name]
    return None, ""


def _role(word: str) -> Role | None:
    if _MASKS.fullmatch(word):
        return "mask"
    if _IMAGES.fullmatch(word):
        return "image"
    return "other" if _OTHERS.fullmatch(word) else None


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", text.lower()) if word]
