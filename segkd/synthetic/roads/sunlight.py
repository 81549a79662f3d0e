"""Light on the ground: sun between shadows, haze, and head lights at night."""

import numpy as np

from segkd.synthetic.roads.course import RoadCamera
from segkd.synthetic.roads.ground import Ground
from segkd.synthetic.roads.plan import Road
from segkd.synthetic.scenes.dice import Dice
from segkd.synthetic.scenes.weather import Weather


def tree_shade(road: Road, ground: Ground, dice: Dice, *, strong: bool) -> np.ndarray:
    """(R, W) float32, 1 where the sun shines: crowns at the sides, branches across the road,
    sometimes a bridge."""
    lit = np.ones(ground.shape, np.float32)
    if strong or dice.chance(0.6):
        leaves = ground.noise(dice.uniform(14, 40), (dice.uniform(0, 256), 7.0), 1.0)
        leaves += 0.5 * ground.noise(dice.uniform(5, 9), (dice.uniform(0, 256), 31.0), 1.0)
        sign = dice.pick((-1, 1))
        edge = dice.uniform(-1.0, 1.0) * (road.edges[1] - road.edges[0]) / 2
        if strong:
            edge -= dice.uniform(0.0, 4.0)
        depth = sign * ground.sides - np.float32(edge)  # metres into the shade
        if strong and dice.chance(0.4):  # crowns from both sides leave spots of light
            depth = np.full_like(lit, dice.uniform(-1.5, 1.5))
        blotches = leaves * np.float32(dice.uniform(0.8, 2.4)) + depth
        lit = np.clip(0.5 - np.float32(dice.uniform(0.5, 2.0)) * blotches, 0, 1)
        lit *= 1.0 - 0.25 * (lit < 0.5)
    if dice.chance(0.25 if strong else 0.06):
        start = dice.uniform(4, 45)
        lit *= 1.0 - ground.between(start, start + dice.uniform(3.0, 20.0))
    return lit


def illuminate(colour: np.ndarray, ground: Ground, lit: np.ndarray, weather: Weather) -> np.ndarray:
    """The ground under this sky, hazy with distance.

    Args:
        colour: (R, W, 3) in white light.
        ground: its depths.
        lit: (R, W), 1 where nothing shades the ground.
        weather: of the scene.

    Returns:
        (R, W, 3) float32, not clipped.
    """
    veil = (1.0 - np.exp(-ground.z / weather.visibility)).astype(np.float32)[..., None]
    soft = weather.ambient.astype(np.float32)
    direct = (weather.sun * weather.direction[1]).astype(np.float32)
    if weather.kind in ("sun", "dusk"):
        light = soft + direct * lit[..., None]
    else:  # under a cloudy sky a shadow dims the light of the sky instead
        light = (soft + direct) * (0.55 + 0.45 * lit[..., None])
    return colour * light * (1.0 - veil) + veil * weather.haze.astype(np.float32)


def head_lights(camera: RoadCamera, size: tuple[int, int], dice: Dice) -> np.ndarray:
    """(H, W) float32 factors by which the head lights brighten what is ahead."""
    rows, columns = size
    power, reach = dice.uniform(0.8, 3.0), dice.uniform(16.0, 45.0)
    below = (np.arange(rows) + 0.5 - camera.horizon * rows) / columns
    z = camera.focal / camera.squash * camera.height / np.maximum(below, 0.004)
    x = (np.arange(columns) + 0.5 - 0.5 * columns) / (camera.focal * columns) * z[:, None]
    wide = 1.6 + 0.22 * z[:, None]
    along = np.exp(-z / reach) * z / (z + 3.0) * np.clip(1 + below * 40, 0, 1)
    pool = np.exp(-((x / wide) ** 2)) * along[:, None]
    return (1.0 + power * pool).astype(np.float32)
