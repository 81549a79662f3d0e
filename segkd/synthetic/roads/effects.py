"""Effects of windscreen and recorder: glare, reflections, motion blur, compression."""

import numpy as np

from segkd.synthetic.roads.course import RoadCamera
from segkd.synthetic.scenes.dice import Dice


def dazzle(image: np.ndarray, camera: RoadCamera, dice: Dice) -> np.ndarray:
    """The sun ahead: a white spot, rays, a veil over everything and a streak on the road.

    Args:
        image: (H, W, 3) uint8 RGB.
        camera: the view.
        dice: source of all choices.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    import cv2

    rows, columns = image.shape[:2]
    y, x = np.mgrid[0:64, 0:128].astype(np.float32) / (64, 128)[0]
    x *= 64 / 128
    column, row = dice.uniform(0.15, 0.85), camera.horizon - dice.uniform(0.02, 0.35)
    across, down = (x - column) * columns / rows, y - row
    distance = np.hypot(across, down)
    veil = dice.uniform(20, 90) * np.exp(-distance / 0.9)
    spot = 330 * np.exp(-((distance / dice.uniform(0.05, 0.16)) ** 2))
    halo = dice.uniform(60, 190) * np.exp(-distance / dice.uniform(0.15, 0.4))
    below = np.clip((y - camera.horizon) * 6, 0, 1)
    streak = dice.uniform(0, 130) * below * np.exp(-((across / dice.uniform(0.08, 0.3)) ** 2))
    light = cv2.resize(veil + spot + halo + streak, (columns, rows))
    warm = np.array((1.0, dice.uniform(0.9, 1.0), dice.uniform(0.7, 0.98)), np.float32)
    bright = image * np.float32(dice.uniform(0.6, 1.0)) + light[..., None] * warm
    return np.clip(bright, 0, 255).astype(np.uint8)


def windscreen(image: np.ndarray, dice: Dice) -> np.ndarray:
    """Adds reflections of the dashboard and overlaid text to an image (H, W, 3) uint8."""
    import cv2

    rows, columns = image.shape[:2]
    if dice.chance(0.15):
        small = (dice.bytes(5, 9) > 150).astype(np.float32) * dice.uniform(8, 40)
        shine = cv2.resize(small, (columns, rows), interpolation=cv2.INTER_CUBIC)
        image = np.clip(image + shine[..., None], 0, 255).astype(np.uint8)
    if dice.chance(0.12):
        x, y = dice.uniform(0.02, 0.75), dice.pick((0.03, 0.93))
        for letter in range(dice.integer(6, 18)):
            left, top = (x + 0.012 * letter) * columns, y * rows
            size = (0.009 * columns, 0.03 * rows)
            if dice.chance(0.85):
                _box(image, left, top, size[0] * dice.uniform(0.3, 1), size[1])
    return image


def _box(image: np.ndarray, left: float, top: float, wide: float, tall: float) -> None:
    rows = slice(round(top), max(round(top) + 1, round(top + tall)))
    image[rows, round(left) : max(round(left) + 1, round(left + wide))] = 236


def motion(image: np.ndarray, camera: RoadCamera, dice: Dice) -> np.ndarray:
    """Blurs the nearest ground of an image (H, W, 3) uint8 along the direction of travel."""
    import cv2

    rows = image.shape[0]
    length = max(1, round(rows * dice.uniform(0.008, 0.035)))
    first = min(rows - 1, round((camera.horizon + 0.45 * (1 - camera.horizon)) * rows))
    smeared = cv2.blur(image[first:], (1, length))
    fade = np.clip(np.linspace(0, 2, rows - first), 0, 1).astype(np.float32)[:, None, None]
    image = image.copy()
    image[first:] = image[first:] + fade * (smeared.astype(np.float32) - image[first:])
    return image


def compressed(image: np.ndarray, quality: int) -> np.ndarray:
    """The image (H, W, 3) uint8 RGB after JPEG compression at this quality, 0 … 100."""
    import cv2

    _, data = cv2.imencode(".jpg", image[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, quality))
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None  # encoded one line above
    return np.ascontiguousarray(decoded[..., ::-1])
