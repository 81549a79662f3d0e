"""Training augmentation: random scale, crop, rotation, flip and colour of image and label.

Scale and crop are implemented here: albumentations resizes the whole image and crops afterwards, or
draws windows by area and aspect ratio; here the window is cut from the stored image and only that
is resized, which is much cheaper for large images. It equals the usual order for windows that start
on a stored pixel, except for the interpolation of the outermost pixels.

``data.augment`` (see ``segkd.data.augment``) comes last, so that its transforms work on images of
one size, and only on the crop.
"""

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import ArrayLike

from segkd.data.augment import library
from segkd.data.augment_list import build_augment
from segkd.data.base import FILL, DataConfig
from segkd.data.lane_geometry import moved, swapped, turned
from segkd.data.lane_masks import Slots
from segkd.data.packing import Packed
from segkd.data.reading import size_text
from segkd.errors import ConfigError

if TYPE_CHECKING:
    from albumentations import ColorJitter

Pixels = np.ndarray | Packed
_OF_OPENCV = (np.uint8, np.uint16, np.int16, np.int32)  # types of whole numbers that it resizes
_JITTER = {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.1}  # at strength 1


@dataclass(frozen=True)
class _Span:
    """Mapping of one axis: source pixels [start, stop) to pixels [low, high) of the crop."""

    start: int
    stop: int
    low: int
    high: int

    @property
    def affine(self) -> tuple[float, float]:
        """Factor and offset from source to crop; whole coordinates are pixel centres."""
        factor = (self.high - self.low) / (self.stop - self.start)
        return factor, (0.5 - self.start) * factor + self.low - 0.5


class TrainTransform:
    """Augments samples; a pure function of its arguments.

    The image is scaled by a factor drawn uniformly from ``config.scale`` (after
    ``config.resize``), cropped to ``config.crop`` at a random position, and padded where it is
    smaller. Images are interpolated linearly, or by area when they shrink to half, labels by
    nearest neighbour, both with aligned pixel centres. Lane points move with the image.

    Args:
        config: the block ``data:``.
        ignore_index: the label of void pixels.
        lanes: whether samples have lanes, which some transforms of ``data.augment`` do not support.

    Raises:
        ConfigError: ``data.augment`` is not valid.
    """

    def __init__(self, config: DataConfig, ignore_index: int, lanes: bool = False) -> None:
        self.config, self.ignore_index = config, ignore_index
        self._rotation = getattr(config, "rotation", 0.0)
        self._jitter = _color_jitter(config)
        self._lanes, self._augment = lanes, None
        if config.augment:
            size = config.crop or config.resize
            self._augment = build_augment(config.augment, ignore_index, lanes, size)

    def __reduce__(self) -> tuple[type[Self], tuple[DataConfig, int, bool]]:
        """Spawned loader processes construct it again."""
        return type(self), (self.config, self.ignore_index, self._lanes)

    def __call__(
        self, image: np.ndarray, label: np.ndarray | None, seed: int
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """Augments one image.

        Args:
            image: (H, W, 3) uint8 RGB.
            label: (H, W) integers, or None.
            seed: of this sample; the only source of randomness.

        Returns:
            Image (h, w, 3), label (h, w) or None, and ``inside`` (h, w) bool, False on padding,
            where the label is the ignore index.

        Raises:
            ConfigError: the crop may be larger than the image and ``data.pad`` is off.
        """
        return self.with_lanes(image, label, None, seed)[:3]

    def with_lanes(
        self, image: Pixels, label: Pixels | None, lanes: Slots | None, seed: int
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, Slots | None]:
        """Augments an image of a lane set; a flip exchanges left and right slots.

        Args:
            image, label, seed: as for ``__call__``; both may be packed.
            lanes: points (n, 2) by slot, in pixels of ``image``, as in a ``Sample``; or None.

        Returns:
            As ``__call__``, and the lanes in pixels of the returned image; points may be outside.

        Raises:
            ConfigError: as ``__call__``, or a transform of ``data.augment`` fails.
        """
        rng = np.random.default_rng(seed)
        rows, columns, crop = self._window(image, rng)
        source = image[rows.start : rows.stop, columns.start : columns.stop]
        part = resize_image(source, (rows.high - rows.low, columns.high - columns.low))
        inside = np.zeros(crop, bool)
        inside[rows.low : rows.high, columns.low : columns.high] = True
        found = None
        if label is not None:
            window = label[rows.start : rows.stop, columns.start : columns.stop]
            if not 0 <= self.ignore_index <= np.iinfo(label.dtype).max:
                window = window.astype(np.int32)
            window = resize_label(window, (part.shape[0], part.shape[1]))
            found = _placed(window, rows, columns, crop, self.ignore_index)
        seen = _placed(part, rows, columns, crop, FILL)
        if lanes is not None:
            lanes = moved(lanes, columns.affine, rows.affine)
        if self._rotation:
            degrees = float(rng.uniform(-self._rotation, self._rotation))
            fills = FILL, self.ignore_index
            seen, found, inside, lanes = turned(seen, found, inside, lanes, degrees, fills)
        sample = self._flip_and_colour(seen, found, inside, lanes, rng)
        return sample if self._augment is None else self._augment(*sample, int(rng.integers(2**62)))

    def _flip_and_colour(
        self,
        image: np.ndarray,
        label: np.ndarray | None,
        inside: np.ndarray,
        lanes: Slots | None,
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, Slots | None]:
        if self.config.flip == 0 and self._jitter is None:
            return image, label, inside, lanes
        # Separate streams: with one seed for all, flipped images would also be darker. The draws
        # are those of albumentations, which flipped in earlier versions.
        if random.Random(int(rng.integers(2**31))).random() < self.config.flip:
            image, inside = mirrored(image), mirrored(inside)
            label = None if label is None else mirrored(label)
            if lanes is not None:
                label, lanes = swapped(label, lanes, image.shape[1])
        if self._jitter is not None:
            self._jitter.set_random_seed(int(rng.integers(2**31)))
            image = self._jitter(image=image)["image"]
        return image, label, inside, lanes

    def _window(
        self, image: Pixels, rng: np.random.Generator
    ) -> tuple[_Span, _Span, tuple[int, int]]:
        """Spans of rows and columns, and the size of the crop."""
        stored = (image.shape[0], image.shape[1])
        size = self.config.resize or stored
        crop = self.config.crop or size
        smallest = [round(length * self.config.scale[0]) for length in size]
        if not self.config.pad and (smallest[0] < crop[0] or smallest[1] < crop[1]):
            raise ConfigError(
                f"data.crop {crop[0]}x{crop[1]} is larger than an image of {size_text(image)} "
                f"that is scaled to {smallest[0]}x{smallest[1]} (height x width; data.scale "
                f"begins at {self.config.scale[0]:g}). Set data.pad=true, or a smaller data.crop, "
                f"or a larger data.scale."
            )
        scale = float(rng.uniform(*self.config.scale))
        spans = [
            _span(length, target, scale * wanted / length, rng)
            for length, wanted, target in zip(stored, size, crop, strict=True)
        ]
        return spans[0], spans[1], crop


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) -> (h, w, 3): linear, or by area if both sides shrink to half or less."""
    import cv2

    if image.shape[:2] == tuple(size):
        return image
    shrinks = 2 * size[0] <= image.shape[0] and 2 * size[1] <= image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (size[1], size[0]), interpolation=method)


def mirrored(array: np.ndarray) -> np.ndarray:
    """A horizontal flip as a new array: (H, W) or (H, W, 3) of any type -> the same shape.

    OpenCV flips bytes ten and more times faster than NumPy copies a view with a negative stride.
    """
    import cv2

    if array.dtype == bool:
        return cv2.flip(array.view(np.uint8), 1).view(bool)
    if array.dtype in (np.uint8, np.int32):
        return cv2.flip(array, 1)
    return np.ascontiguousarray(array[:, ::-1])


def resize_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) -> (h, w): nearest neighbour of pixel centres, any integer type.

    OpenCV takes half as long as NumPy, but in fixed point: where a centre lies between two pixels,
    it may take the other one. These rows and columns are taken again.
    """
    import cv2

    if label.shape == tuple(size):
        return label
    rows, columns = (
        ((np.arange(target) + 0.5) * (length / target)).astype(np.intp)
        for length, target in zip(label.shape, size, strict=True)
    )
    if label.dtype not in _OF_OPENCV:
        return label.take(rows, axis=0).take(columns, axis=1)
    found = cv2.resize(label, (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT)
    other = np.flatnonzero(_taken_by_opencv(label.shape[1], size[1]) != columns)
    found[:, other] = label[rows[:, None], columns[other]]
    other = np.flatnonzero(_taken_by_opencv(label.shape[0], size[0]) != rows)
    found[other] = label[rows[other]].take(columns, axis=1)
    return found


def _taken_by_opencv(length: int, target: int) -> np.ndarray:
    """(target,): which of ``length`` pixels OpenCV takes for each of ``target``."""
    import cv2

    line = np.arange(length, dtype=np.float32)[None]  # exact up to 2^24
    return cv2.resize(line, (target, 1), interpolation=cv2.INTER_NEAREST_EXACT)[0]


def _span(length: int, crop: int, scale: float, rng: np.random.Generator) -> _Span:
    """A random window of ``crop`` pixels on an axis of ``length`` pixels scaled by ``scale``."""
    needed = max(1, round(crop / scale))
    if needed <= length:
        start = int(rng.integers(length - needed + 1))
        return _Span(start, start + needed, 0, crop)
    shown = min(crop, max(1, round(length * scale)))
    low = int(rng.integers(crop - shown + 1))
    return _Span(0, length, low, low + shown)


def _placed(
    part: np.ndarray, rows: _Span, columns: _Span, crop: tuple[int, int], fill: ArrayLike
) -> np.ndarray:
    """``part`` at its position in an array of the size of the crop; the rest is filled."""
    if part.shape[:2] == tuple(crop):
        return part
    whole = np.empty((*crop, *part.shape[2:]), part.dtype)
    whole[:] = fill
    whole[rows.low : rows.high, columns.low : columns.high] = part
    return whole


def _color_jitter(config: DataConfig) -> "ColorJitter | None":
    if config.color_jitter == 0:
        return None
    strengths = {key: share * config.color_jitter for key, share in _JITTER.items()}
    return library().ColorJitter(**strengths, p=1.0)
