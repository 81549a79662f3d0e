"""Colours of classes, and coloured label maps."""

import colorsys

import numpy as np
from numpy.typing import ArrayLike

VOID = (110, 110, 110)
_ALIKE, _CLEAR = 12, 22  # distances in CIE Lab: similar, and clearly distinct, over an image
_GREY = 100  # value of that image
_MOST = 40  # largest number of classes

# Okabe and Ito's set (Color Universal Design, 2008) without black, then darker and lighter
# companions: neighbours in the list differ in lightness as well as in hue.
_FIRST = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
    (51, 34, 136),
    (136, 204, 160),
    (136, 34, 85),
    (190, 190, 250),
    (102, 76, 40),
)


def default_palette(num_classes: int) -> np.ndarray:
    """(K, 3) uint8 RGB, distinct for any K; the first twelve also for colour-blind readers.

    The first colours are the same for every K.
    """
    colors: list[tuple[int, ...]] = list(_FIRST[:num_classes])
    position = 0
    while len(colors) < num_classes:
        # The golden ratio spreads hues evenly for any number of classes; lightness and
        # saturation alternate, so that colours of similar hue still differ.
        hue = (0.11 + position * 0.618033988749895) % 1.0
        value, saturation = (0.95, 0.70, 0.85, 0.50)[position % 4], (0.55, 0.9, 0.75)[position % 3]
        color = tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))
        if color not in colors:
            colors.append(color)
        position += 1
    return np.array(colors, np.uint8).reshape(num_classes, 3)


def bit_palette(num_classes: int) -> np.ndarray:
    """The palette of Pascal VOC, (K, 3) uint8 RGB, distinct for K up to 256.

    The bits of the id are distributed to red, green and blue in turn, from their highest bits on.
    """
    ids = np.arange(num_classes)[:, None]
    channels = np.arange(3)
    colors = np.zeros((num_classes, 3), np.uint8)
    for turn in range(3):
        colors |= ((ids >> (3 * turn + channels) & 1) << (7 - turn)).astype(np.uint8)
    return colors


def distinct(palette: ArrayLike) -> np.ndarray:
    """A palette for viewing: colours too similar to that of an earlier class are replaced.

    For instance, Cityscapes' bus and train are two dark blues. Stored label maps keep the official
    colours.

    Args:
        palette: (K, 3) uint8 RGB; more than ``_MOST`` classes are unchanged.

    Returns:
        (K, 3) uint8 RGB; equal to ``palette`` where its colours are distinct.
    """
    palette = np.asarray(palette, np.uint8)
    if not 2 <= len(palette) <= _MOST:
        return palette.copy()
    found, lab = palette.copy(), _lab(palette)
    steps = np.array((0, 64, 128, 192, 255), np.uint8)
    free = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    free_lab = _lab(free)
    for k in range(1, len(palette)):
        if np.linalg.norm(lab[:k] - lab[k], axis=1).min() >= _ALIKE:
            continue
        others = np.delete(np.vstack([lab, _lab(np.array([VOID], np.uint8))]), k, axis=0)
        apart = np.linalg.norm(free_lab[:, None] - others[None], axis=2).min(1)
        far = np.linalg.norm(free_lab - lab[k], axis=1)  # the nearest distinct one
        best = np.where(apart >= min(_CLEAR, apart.max()), far, np.inf).argmin()
        found[k], lab[k] = free[best], free_lab[best]
    return found


def _lab(colors: np.ndarray) -> np.ndarray:
    """Colours (N, 3) uint8 RGB over a grey image in CIE Lab, where distances are perceptual."""
    import cv2

    mixed = (0.6 * colors + 0.4 * _GREY).astype(np.float32) / 255
    return cv2.cvtColor(mixed[None], cv2.COLOR_RGB2LAB)[0]


def colorize(
    label: ArrayLike, palette: ArrayLike, void_color: tuple[int, int, int] = VOID
) -> np.ndarray:
    """The colours of a label map.

    Args:
        label: (H, W) integer class ids, an array or a CPU tensor.
        palette: (K, 3) RGB.
        void_color: RGB of the ignore index and of ids outside the palette.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    palette = np.asarray(palette, np.uint8)
    label = np.asarray(label)
    table = np.vstack([palette, np.array([void_color], np.uint8)])
    classes = len(palette)
    return table[np.where((label >= 0) & (label < classes), label, classes)]
