"""Reads and checks the list ``data.augment``: names of albumentations' transforms, with arguments.

Only classes of albumentations itself are made, from plain data. Each is tried on a noisy image, so
that what fails, changes sizes or types, or cannot be repeated is told when a config is read.
"""

import functools
import inspect
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError

from segkd.data.augment import Augment, Pipeline, is_geometric, library
from segkd.data.base import FILL
from segkd.data.lane_geometry import where_shown
from segkd.errors import ConfigError, did_you_mean, shortened

_FORM = "expected a transform by its name, e.g. `RandomFog: {p: 0.2}`"
_UNKNOWN_SIZE = (720, 1280)  # on which transforms are tried
_SIZES = "it changes the size of images, which data.resize, data.scale and data.crop decide"
_FLOAT = "networks normalise images themselves, and take them as bytes"
_MORE = "it needs more than the sample itself: other images, texts, or boxes"
_UPSIDE = "it turns a road upside down or on its side, where slots of lanes mean nothing"
_PARTED = "it cuts lanes into pieces that do not meet"

REFUSED: dict[str, str] = {
    **dict.fromkeys(("Normalize", "ToFloat", "FromFloat", "ToTensorV2", "ToTensor3D"), _FLOAT),
    **dict.fromkeys(
        (
            *("CenterCrop", "Crop", "CropNonEmptyMaskIfExists", "RandomCrop"),
            *("RandomCropFromBorders", "RandomResizedCrop", "RandomSizedCrop"),
            *("LongestMaxSize", "SmallestMaxSize", "Resize", "RandomScale", "Pad", "PadIfNeeded"),
        ),
        _SIZES,
    ),
    **dict.fromkeys(
        (
            *("FDA", "HistogramMatching", "PixelDistributionAdaptation", "TemplateTransform"),
            *("MixUp", "Mosaic", "OverlayElements", "TextImage", "ConstrainedCoarseDropout"),
            *("AtLeastOneBBoxRandomCrop", "BBoxSafeRandomCrop"),
            *("RandomCropNearBBox", "RandomSizedBBoxSafeCrop"),
        ),
        _MORE,
    ),
    "Lambda": "it needs functions, and a configuration is plain data",
    "Morphological": "it would compute with class ids as if they were levels of grey",
    "MaskDropout": "it takes what is not 0 in a mask for objects, and class ids are no objects",
    "ToRGB": "images are RGB already",
    "PiecewiseAffine": "it takes seconds per image; ElasticTransform takes a tenth of that",
    "TimeReverse": "it is made for spectrograms; use HorizontalFlip",
    "TimeMasking": "it is made for spectrograms; use XYMasking",
    "FrequencyMasking": "it is made for spectrograms; use XYMasking",
    "Compose": "the list itself is one; for a group inside of another use Sequential",
    "ReplayCompose": "the list itself is a Compose; for a group inside of another use Sequential",
}

REFUSED_OF_LANES: dict[str, str] = {
    "HorizontalFlip": "lanes would keep their slots; use data.flip, which exchanges left and right "
    "where both sides have as many",
    **dict.fromkeys(
        ("VerticalFlip", "Transpose", "RandomRotate90", "D4", "SquareSymmetry"), _UPSIDE
    ),
    **dict.fromkeys(("RandomGridShuffle", "GridElasticDeform"), _PARTED),
}

ON_ITS_SIDE = ("Transpose", "RandomRotate90", "D4", "SquareSymmetry")  # keep squares only

# Arguments that are not the user's.
OURS: dict[str, str] = {
    "fill_mask": "is set by segkd: what comes in from beyond the image is padding, and parts that "
    "are dropped keep their labels",
    "mask_drop_value": "is set by segkd: dropped pixels keep their labels",
    "mask_interpolation": "is set by segkd: class ids are taken from the nearest pixel",
    "keypoint_remapping_method": "is set by segkd: points of lanes move as their pixels do",
    "strict": "is set by segkd: unknown arguments are always refused",
}

# What albumentations says by a warning, but not about wrong arguments.
ADVICE = ("is a special case of",)


@dataclass(frozen=True)
class AugmentProblem:
    """What is wrong with the list: keys and positions that lead there, what was got, and why."""

    path: tuple[str | int, ...]
    got: Any
    text: str


def augment_problems(
    entries: Sequence, lanes: bool, size: tuple[int, int] | None
) -> tuple[AugmentProblem, ...]:
    """Everything that is wrong with the list; each transform is made and tried on a noisy image.

    Args:
        entries: names, or mappings of one name to its arguments; or whatever else was written.
        lanes: whether the set has lanes.
        size: (H, W) of the images, where it is known.
    """
    if not entries:
        return ()
    plain = json.dumps(entries, default=lambda found: [repr(found)])  # no transform takes that
    return _problems(plain, lanes, size and tuple(size))


@functools.lru_cache
def _problems(
    entries: str, lanes: bool, size: tuple[int, int] | None
) -> tuple[AugmentProblem, ...]:
    reader = _Reader(lanes, size, try_each=True)
    reader.read(json.loads(entries))
    return tuple(reader.problems)


def build_augment(
    entries: Sequence, ignore_index: int, lanes: bool, size: tuple[int, int] | None
) -> Augment:
    """The list as a function of samples.

    Args:
        entries: names, or mappings of one name to its arguments.
        ignore_index: the label of void pixels.
        lanes, size: as above.

    Raises:
        ConfigError: the first problem of the list.
    """
    for one in augment_problems(entries, lanes, size):
        raise ConfigError(f"data.augment.{'.'.join(map(str, one.path))}: {one.text}")
    return Augment(_Reader(lanes, size).read(entries), ignore_index, lanes)


@functools.cache
def _transforms() -> dict[str, type[Any]]:
    """All transforms for images by name, also those that are refused."""
    albumentations = library()
    bases = albumentations.BasicTransform, albumentations.BaseCompose
    no_images = (albumentations.Transform3D,)
    abstract = (*bases, albumentations.DualTransform, albumentations.ImageOnlyTransform)
    classes = {name: kind for name, kind in vars(albumentations).items() if inspect.isclass(kind)}
    return {
        name: kind
        for name, kind in classes.items()
        if issubclass(kind, bases) and not issubclass(kind, no_images) and kind not in abstract
    }


class _Reader:
    """Makes transforms of a list and notes what is wrong with it.

    Attributes:
        problems: of all lists that were read.
    """

    def __init__(
        self, lanes: bool, size: tuple[int, int] | None, *, try_each: bool = False
    ) -> None:
        self.lanes, self.size, self.try_each = lanes, size, try_each
        self.problems: list[AugmentProblem] = []

    def read(self, entries: Any, path: tuple = ()) -> list:
        """The transforms that can be made."""
        made = [self._one(entry, (*path, place)) for place, entry in enumerate(entries)]
        return [transform for transform in made if transform is not None]

    def _refuse(self, path: tuple, got: Any, text: str) -> None:
        self.problems.append(AugmentProblem(path, got, " ".join(text.split())))

    def _one(self, entry: Any, path: tuple[Any, ...]) -> Any:
        if isinstance(entry, dict) and len(entry) > 1:
            names = ", ".join(map(str, entry))
            self._refuse(path, entry, f"got {names} in one entry: begin a line `- ` for each")
            return None
        name: Any = entry
        arguments: Any = {}
        if isinstance(entry, dict) and entry:
            ((name, arguments),) = entry.items()
            path = (*path, name)
        if not isinstance(name, str):
            self._refuse(path, entry, f"got {shortened(entry, 60)}, {_FORM}")
            return None
        if not isinstance(arguments, dict):
            text = f"got {shortened(arguments, 60)}, expected arguments, e.g. `{name}: {{p: 0.2}}`"
            self._refuse(path, arguments, text)
            return None
        text = self._refusal(name)
        if text:
            self._refuse(path, name, text)
            return None
        is_group = issubclass(_transforms()[name], library().BaseCompose)
        return (self._group if is_group else self._single)(name, arguments, path)

    def _refusal(self, name: str) -> str:
        """Why a transform is refused whatever its arguments are; empty if it is not."""
        refused = REFUSED | (REFUSED_OF_LANES if self.lanes else {})
        if name in refused:
            return f"{name} is refused: {refused[name]}"
        if name not in _transforms():
            if name.endswith("3D") and hasattr(library(), name):
                return f"{name} is refused: it is made for volumes"
            known = set(_transforms()) - set(refused)
            return f"unknown transform '{name}'.{did_you_mean(name, known)}"
        if name in ON_ITS_SIDE and not (self.size and self.size[0] == self.size[1]):
            return (
                f"{name} is refused: it turns images on their side, which needs a square data.crop"
            )
        return ""

    def _single(self, name: str, arguments: dict[Any, Any], path: tuple[Any, ...]) -> Any:
        kind, before = _transforms()[name], len(self.problems)
        known = inspect.signature(kind.__init__).parameters
        for key, value in arguments.items():
            if key == "self" or key not in known:
                keys = set(known) - {"self", *OURS}
                text = f"{name} has no argument '{key}'.{did_you_mean(str(key), keys)}"
                self._refuse((*path, key), value, text)
            elif key in OURS:
                self._refuse((*path, key), value, f"{key} {OURS[key]}. Remove it")
            elif key == "border_mode" and self.lanes and value != 0:
                text = (
                    "of lane sets only 0: others show lanes beyond the border, which have no slot"
                )
                self._refuse((*path, key), value, f"got {shortened(value, 60)}; {text}")
        if len(self.problems) > before:
            return None
        if self.lanes and "keypoint_remapping_method" in known:
            kind = _exact(kind)
        if "fill" in known and known.get("fill_mask", known["fill"]).default == 0:
            arguments = {"fill": list(FILL)} | arguments  # what is mixed in along the border
        made = self._made(kind, arguments, path)
        if made is not None and self.try_each:
            reason = self._tried(kind, arguments)
            if reason:
                self._refuse(path, arguments, f"{name} is refused: {reason}")
        return made

    def _group(self, name: str, arguments: dict[Any, Any], path: tuple[Any, ...]) -> Any:
        kind, before = _transforms()[name], len(self.problems)
        known = {"transforms": None, **_GROUPED.get(name, {}), "p": _is_share}
        for key, value in arguments.items():
            if key not in known:
                text = f"{name} has no argument '{key}'.{did_you_mean(str(key), known)}"
                self._refuse((*path, key), value, text)
            elif key != "transforms" and not known[key](value):
                text = f"got {shortened(value, 60)}, expected {known[key].__doc__}"
                self._refuse((*path, key), value, text)
        entries = arguments.get("transforms")
        if not isinstance(entries, list) or not entries:
            text = (
                "expected a list of transforms, e.g. {transforms: [{Blur: {}}, {MotionBlur: {}}]}"
            )
            got = "" if entries is None else f"got {shortened(entries, 60)}, "
            self._refuse((*path, "transforms"), entries, f"{name}: transforms: {got}{text}")
            return None
        inner = self.read(entries, (*path, "transforms"))
        if name == "SelectiveChannelTransform" and any(map(is_geometric, inner)):
            text = "would move some channels and leave the mask: only transforms of colours go into"
            self._refuse(path, entries, f"{text} {name}")
        if name == "OneOf" and inner and not any(transform.p for transform in inner):
            self._refuse(path, entries, "OneOf: p of its transforms are weights, and all are 0")
        if len(self.problems) > before:
            return None
        return self._made(kind, {**arguments, "transforms": inner}, path)

    def _made(self, kind: type, arguments: dict[Any, Any], path: tuple[Any, ...]) -> Any:
        """The transform; None if albumentations refuses its arguments, or would change them."""
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                made = kind(**arguments)
            except Exception as error:  # whatever it stumbles over
                self._told_by(error, kind.__name__, arguments, path)
                return None
        for text in _of_the_user(told):
            self._refuse(path, arguments, f"{kind.__name__}: albumentations: {text}")
        return made

    def _told_by(self, error: Exception, name: str, arguments: dict, path: tuple) -> None:
        """Problems of the arguments that albumentations refuses."""
        cause = error.__cause__
        if not isinstance(cause, ValidationError):
            text = str(error) or type(error).__name__
            self._refuse(path, arguments, f"{name}: albumentations: {text}")
            return
        texts: dict[str, dict[str, None]] = {}
        for one in cause.errors():
            key = str(one["loc"][0]) if one["loc"] else ""
            said = "is missing" if one["type"] == "missing" and len(one["loc"]) == 1 else one["msg"]
            texts.setdefault(key, {})[said.removeprefix("Value error, ")] = None
        for key, found in texts.items():
            got = f"got {shortened(arguments[key], 60)}; " if key in arguments else ""
            here = (*path, key) if key in arguments else path
            said = "; ".join(found)
            said = f"{key} {said}" if said == "is missing" else f"albumentations: {said}"
            about = f"{name}: " if key in arguments or key in said else f"{name}: {key}: "
            self._refuse(here, arguments.get(key), f"{about}{got}{said}")

    def _tried(self, kind: type, arguments: dict) -> str:
        """Runs a transform on noise; says why its results cannot be used, or nothing."""
        height, width = self.size or _UNKNOWN_SIZE
        draw = np.random.default_rng(0)
        image = draw.integers(0, 256, (height, width, 3), np.uint8)
        quarters = np.ones((-(-height // 2), -(-width // 2)), np.uint8)
        mask = np.kron(np.array([[1, 2], [3, 5]], np.uint8), quarters)[:height, :width]
        middle = np.array([width // 2, height // 2], np.float32)
        points = middle + np.array([[0, 0], [5, 0], [0, 5]], np.float32)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                pipeline = Pipeline([kind(**{**arguments, "p": 1.0})], self.lanes)
                first, second = (pipeline(image, mask, points, seed=1) for _ in range(2))
            except ConfigError as error:
                return str(error)
        for text in _of_the_user(told):
            return f"albumentations: {text}"
        if not all(map(np.array_equal, first, second)):
            return "it is not repeatable: it draws from a generator of its own"
        if not set(np.unique(first[1])) <= {0, 1, 2, 3, 5}:
            return "it makes class ids that the mask does not have"
        right, down = first[2][1:] - first[2][0]
        if right[0] * down[1] - right[1] * down[0] < 0:
            return REFUSED_OF_LANES["HorizontalFlip"]
        return ""


class _Exact:
    """Lane points under the distortions: by the inverse of the map that moves the pixels.

    albumentations paints a dot for each point and looks where it went, which loses those at the
    border, or rounds them.
    """

    def apply_to_keypoints(
        self, keypoints: np.ndarray, map_x: np.ndarray, map_y: np.ndarray, **params: Any
    ) -> np.ndarray:
        moved = keypoints.copy()
        moved[:, :2] = where_shown(keypoints[:, :2], map_x, map_y)
        return moved


def _exact(kind: type) -> type:
    return type(kind)(kind.__name__, (_Exact, kind), {})


def _of_the_user(told: Sequence[warnings.WarningMessage]) -> Iterator[str]:
    """Texts of warnings that are about arguments."""
    for one in told:
        text = str(one.message)
        if issubclass(one.category, UserWarning) and not any(advice in text for advice in ADVICE):
            yield text


def _is_share(value: Any) -> bool:
    """a number from 0 to 1"""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _is_count(value: Any) -> bool:
    """a whole number greater than 0"""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_switch(value: Any) -> bool:
    """true or false"""
    return isinstance(value, bool)


def _are_channels(value: Any) -> bool:
    """a list of channels, each once, e.g. [0, 2]"""
    return isinstance(value, list) and value in [sorted(set(value) & {0, 1, 2})] and bool(value)


_GROUPED: dict[str, dict] = {  # arguments of groups, which albumentations does not check
    "SomeOf": {"n": _is_count, "replace": _is_switch},
    "RandomOrder": {"n": _is_count, "replace": _is_switch},
    "SelectiveChannelTransform": {"channels": _are_channels},
}
