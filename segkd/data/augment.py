"""Transforms of albumentations by name: the list ``data.augment``.

They see the sample last, as the built-in transforms leave it, so that all images have one size. A
mask goes along in which 0 is padding, 1 void, and k + 2 class k: whatever comes in from beyond the
image is 0 for every transform by default, and so becomes padding, void for the loss, whichever
label the data set ignores.

albumentations gives all transforms of a list generators of the same seed, so that those of the
same probability would always come together. Here all draw from one pair of generators, which the
sample's seed begins; nothing else is random.
"""

import os
import random
import traceback
from typing import Any

import numpy as np

from segkd.data.base import FILL
from segkd.data.lane_masks import Slots
from segkd.errors import ConfigError

_VOID, _FIRST = 1, 2  # of the mask that goes along


class Augment:
    """Applies transforms to samples; a pure function of its arguments.

    Args:
        transforms: of albumentations, as ``segkd.data.augment_list`` makes them.
        ignore_index: the label of void pixels.
        lanes: whether the set has lanes.
    """

    def __init__(self, transforms: list[Any], ignore_index: int, lanes: bool) -> None:
        self.ignore_index, self._pipeline = ignore_index, Pipeline(transforms, lanes)

    @property
    def geometric(self) -> str:
        """The name of the first transform that may move masks and points; empty without any."""
        found = filter(is_geometric, self._pipeline.transforms)
        return next((type(transform).__name__ for transform in found), "")

    def __call__(
        self,
        image: np.ndarray,
        label: np.ndarray | None,
        inside: np.ndarray,
        lanes: Slots | None,
        seed: int,
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, Slots | None]:
        """Augments by ``seed``; the arguments stay as they are.

        Args:
            image: (h, w, 3) uint8 RGB.
            label: (h, w) integers, or None.
            inside: (h, w) bool, False on padding.
            lanes: points (n, 2) by slot, in pixels of ``image``.

        Returns:
            The same four, of the same size; padding has the colour ``FILL``.

        Raises:
            ConfigError: a transform fails on this image.
        """
        mask = _coded(label, inside, self.ignore_index)
        points = [] if lanes is None else [lane for lane in lanes if lane is not None]
        joined = np.concatenate(points) if points else np.empty((0, 2), np.float32)
        known = np.isfinite(joined).all(axis=1)  # rows of NaN part lines
        moved = joined.copy()
        try:
            image, mask, moved[known] = self._pipeline(image, mask, joined[known], seed)
        except ConfigError as error:
            raise ConfigError(f"data.augment: {error}. Change or remove that transform") from error
        inside = mask != 0
        image[~inside] = FILL
        if label is not None:
            ids = np.where(mask >= _FIRST, mask.astype(np.int32) - _FIRST, self.ignore_index)
            label = ids.astype(label.dtype)
        if lanes is not None:
            ends = np.cumsum([len(lane) for lane in points])[:-1]
            pieces = iter(np.split(moved, ends) if points else ())
            lanes = tuple(None if lane is None else next(pieces) for lane in lanes)
        return image, label, inside, lanes

    def described(self) -> str:
        """The transforms with their probabilities, for people."""
        return ", ".join(map(_described, self._pipeline.transforms))


class Pipeline:
    """albumentations' Compose, seeded for each sample; what cannot be stacked is an error.

    Attributes:
        transforms: of the list.
    """

    def __init__(self, transforms: list[Any], lanes: bool) -> None:
        albumentations = library()
        self.transforms, self.geometric = transforms, any(map(is_geometric, transforms))
        points = albumentations.KeypointParams(
            "xy", remove_invisible=False, check_each_transform=False
        )
        self.lanes = lanes and self.geometric
        self._all = albumentations.Compose(
            transforms, keypoint_params=points if self.lanes else None
        )

    def __call__(
        self, image: np.ndarray, mask: np.ndarray, points: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """New arrays of the same sizes and types: image, mask (h, w), and points (n, 2).

        Raises ConfigError where albumentations fails, or changes a size or a type.
        """
        data = {"image": image.copy()}
        if self.geometric:
            data["mask"] = mask.copy()
        if self.lanes and len(points):
            data["keypoints"] = points.astype(np.float32)
        # Not `set_random_seed`: see the module's docstring.
        self._all.set_random_state(np.random.default_rng(seed), random.Random(seed))
        try:
            drawn = self._all(**data)
        except Exception as error:  # whatever cv2 and numpy raise
            text = " ".join((str(error) or type(error).__name__).split()).rstrip(".")
            raise ConfigError(
                f"{_culprit(error)} fails on an image of {image.shape[0]}x{image.shape[1]}: {text}"
            ) from error
        found = {"mask": mask, "keypoints": points} | drawn
        for key, before in {"image": image, "mask": mask}.items():
            after = found[key]
            if getattr(after, "shape", None) != before.shape or after.dtype != before.dtype:
                raise ConfigError(
                    f"the {key}, {_form(before)}, has become {_form(after)}: images stay bytes, of "
                    "the size that data.crop decides"
                )
        moved = np.asarray(found["keypoints"], np.float32).reshape(-1, 2)
        if len(moved) != len(points):
            raise ConfigError(f"of {len(points)} points of lanes {len(moved)} are left")
        return found["image"], found["mask"], moved


def library() -> Any:
    """albumentations, imported where it is used: that takes seconds."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else it asks PyPI at import
    import albumentations

    return albumentations


def is_geometric(transform: Any) -> bool:
    """Whether masks and points may change, too."""
    if isinstance(transform, library().BaseCompose):
        return any(map(is_geometric, transform.transforms))
    return isinstance(transform, library().DualTransform)


def _coded(label: np.ndarray | None, inside: np.ndarray, ignore_index: int) -> np.ndarray:
    """The mask that goes along: bytes if ids fit, else float32, which albumentations takes, too."""
    mask = inside.astype(np.uint8) * _VOID
    if label is None:
        return mask
    known = inside & (label != ignore_index)
    codes = label[known].astype(np.int32) + _FIRST  # in bytes class 254 would become padding
    if codes.max(initial=0) > np.iinfo(np.uint8).max:
        mask = mask.astype(np.float32)
    mask[known] = codes
    return mask


def _culprit(error: Exception) -> str:
    """The name of the transform in which an error was raised."""
    frames = (frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__))
    names = [type(one).__name__ for one in frames if isinstance(one, library().BasicTransform)]
    return names[0] if names else "albumentations"


def _form(array: Any) -> str:
    shape = "x".join(map(str, getattr(array, "shape", ())))
    return f"{shape} {getattr(array, 'dtype', type(array).__name__)}"


def _described(transform: Any) -> str:
    inner = getattr(transform, "transforms", ())
    parts = f": {' | '.join(map(_described, inner))}" if inner else ""
    return f"{type(transform).__name__}(p={transform.p:g}{parts})"
