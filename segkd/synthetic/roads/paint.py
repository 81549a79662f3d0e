"""Paints the surface of a road, in its light, onto a canvas."""

import numpy as np

from segkd.synthetic.roads.ground import Ground
from segkd.synthetic.roads.sunlight import illuminate
from segkd.synthetic.roads.surface import Surface
from segkd.synthetic.scenes import classes as ids
from segkd.synthetic.scenes.draw import SCALE, Canvas
from segkd.synthetic.scenes.ground import shadows
from segkd.synthetic.scenes.thing import Thing
from segkd.synthetic.scenes.weather import Weather


def light_among(
    things: list[Thing], canvas: Canvas, ground: Ground, size: tuple[int, int]
) -> np.ndarray:
    """Share of the sun's light that things leave to the rows of the ground, float32.

    Args:
        things: throw shadows.
        canvas: of the scene.
        ground: n rows of an image are ground.
        size: (H, W) of the image.

    Returns:
        (n, W) from 0 to 1.
    """
    import cv2

    shade = cv2.resize(shadows(canvas, things), size[::-1], interpolation=cv2.INTER_AREA)
    return shade[ground.first :] * np.float32(1 / 255)


def paint_ground(
    canvas: Canvas, surface: Surface, ground: Ground, lit: np.ndarray, weather: Weather
) -> None:
    """Paints what of the ground is seen, road and what is beside it.

    Args:
        canvas: is changed.
        surface: colours of the ground.
        ground: where it is.
        lit: (n, W), as of ``light_among``.
        weather: the light.
    """
    import cv2

    colour = illuminate(surface.colour, ground, lit, weather)
    pixels = np.empty((*ground.shape, 4), np.uint8)
    pixels[..., :3] = np.clip(colour, 0, 255)
    pixels[..., 3] = np.where(surface.paved > 0.5, ids.ROAD, ids.TERRAIN)
    part = canvas.pixels[ground.first * SCALE :]
    part[:] = cv2.resize(pixels, part.shape[1::-1], interpolation=cv2.INTER_NEAREST)
