"""One scene from its key: the plan, what stands on it, the painting, the photograph."""

from collections.abc import Sequence

import numpy as np

from segkd.synthetic.scenes import classes as ids
from segkd.synthetic.scenes.camera import Camera
from segkd.synthetic.scenes.dice import Dice
from segkd.synthetic.scenes.draw import Canvas
from segkd.synthetic.scenes.ground import paint_ground, paint_sky
from segkd.synthetic.scenes.lens import photograph
from segkd.synthetic.scenes.populate import populate
from segkd.synthetic.scenes.street import Street
from segkd.synthetic.scenes.weather import KINDS, Weather


def draw_scene(
    key: Sequence[int], size: tuple[int, int], weather_kinds: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) uint8 RGB and label (H, W) uint8 of the scene with this key.

    The size changes only how finely the same scene is drawn. With ``weather_kinds``, keys of
    ``weather.KINDS``, there is no other weather, in the same streets.
    """
    kinds = {kind: KINDS[kind] for kind in weather_kinds} or KINDS
    camera = Camera.sample(Dice((*key, 0)))
    weather = Weather.sample(Dice((*key, 1)), kinds)
    street = Street.sample(Dice((*key, 2)))
    things = populate(street, weather, Dice((*key, 3)))
    canvas, dice = Canvas(camera, weather, size), Dice((*key, 4))
    paint_sky(canvas, dice)
    paint_ground(canvas, street, things, dice)
    canvas.paint(things)
    if dice.chance(0.25):
        paint_hood(canvas, dice)
    label = canvas.label()
    image = photograph(canvas.image(), label, weather, camera.horizon, Dice((*key, 5)))
    return image, label


def paint_hood(canvas: Canvas, dice: Dice) -> None:
    """The bonnet of the camera's own car, which is void."""
    import cv2

    rows, columns = canvas.size
    rise, middle = dice.uniform(0.04, 0.1), dice.uniform(0.4, 0.6)
    across = np.linspace(-0.05, 1.05, 24)
    arch = 1.0 - rise * (1.0 - (2.0 * (across - middle)) ** 4 * 0.8)
    outline = np.stack([across * columns, arch * rows], 1)
    outline = np.concatenate([outline, [(1.1 * columns, 1.2 * rows), (-0.1 * columns, 1.2 * rows)]])
    colour = np.array(dice.colour(((40, 42, 46), (120, 124, 130), (180, 180, 182), (90, 30, 30))))
    light = canvas.weather.ambient + 0.5 * canvas.weather.sun
    for shift, shade in ((0.0, 0.6), (0.015 * rows, 1.0)):
        fixed = np.rint((outline + np.array((0.0, shift))) * 16).astype(np.int32)
        fill = np.clip(colour * light * shade, 0, 255).tolist()
        cv2.fillPoly(canvas.pixels, [fixed], (*fill, ids.VOID), cv2.LINE_8, 4)
