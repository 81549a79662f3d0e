"""From the canvas to a photograph: surface grain, wet roads, glare, rain, blur, grading, noise."""

import numpy as np

from segkd.synthetic.scenes import classes as ids
from segkd.synthetic.scenes.dice import Dice
from segkd.synthetic.scenes.stamps import tile
from segkd.synthetic.scenes.weather import Weather

_GRAIN = np.full(256, 3.0, np.float32)  # grey values of texture by label
_GRAIN[[ids.BUILDING, ids.WALL, ids.FENCE, ids.VEGETATION]] = 7.0, 10.0, 6.0, 9.0
_GRAIN[[ids.ROAD, ids.SIDEWALK, ids.SKY]] = 2.0, 2.5, 0.8


def photograph(
    drawn: np.ndarray, label: np.ndarray, weather: Weather, horizon: float, dice: Dice
) -> np.ndarray:
    """What a camera would store of a drawn scene in this weather.

    Args:
        drawn: (H, W, 3) uint8 RGB, changed in place where the road is wet.
        label: (H, W) uint8 class ids.
        weather: of the scene.
        horizon: row of the horizon as a fraction of the height.
        dice: for noise and rain.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    import cv2

    rows, columns = label.shape
    if weather.wet:
        _mirror(drawn, label, weather.wet, int(horizon * rows))
    noise = np.roll(tile(), (dice.integer(0, 255), dice.integer(0, 255)), (0, 1))
    grain: np.ndarray = cv2.resize(noise[:128], (columns, rows), interpolation=cv2.INTER_LINEAR)
    grain *= cv2.LUT(label, _GRAIN) * (0.3 if weather.kind == "night" else 1.0)
    image: np.ndarray = drawn.astype(np.float32)
    image += grain[..., None]
    if weather.dark:
        image += _glare(drawn)
    if weather.kind == "rain":
        image += _streaks(rows, columns, dice)[..., None]
    if weather.blur:
        sigma = weather.blur * columns / 1000
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    image = _sensor(image, weather, dice)
    return cv2.LUT(image, _curves(weather))


def _mirror(drawn: np.ndarray, label: np.ndarray, wet: float, horizon: int) -> None:
    """Blends the road with what stands above it, upside down."""
    import cv2

    below = drawn[horizon:]
    above = drawn[max(0, 2 * horizon - len(drawn)) : horizon][::-1]
    if len(above) == 0:  # of two or three rows, all may be below the horizon
        return
    above = cv2.blur(above, (3, max(3, len(drawn) // 12)))
    if len(above) < len(below):
        above = cv2.copyMakeBorder(above, 0, len(below) - len(above), 0, 0, cv2.BORDER_REPLICATE)
    road = label[horizon:] <= ids.SIDEWALK
    np.copyto(below, cv2.addWeighted(below, 1 - wet, above, wet, 0), where=road[..., None])


def _glare(drawn: np.ndarray) -> np.ndarray:
    """Light that spreads around bright areas."""
    import cv2

    rows, columns = drawn.shape[:2]
    small = cv2.resize(drawn, (64, 32), interpolation=cv2.INTER_AREA)
    bright = np.maximum(small.astype(np.float32) - 120, 0)
    return 0.9 * cv2.resize(cv2.GaussianBlur(bright, (0, 0), 1.6), (columns, rows))


def _streaks(rows: int, columns: int, dice: Dice) -> np.ndarray:
    import cv2

    drops = (dice.bytes(64, 256) > 251).astype(np.float32)
    drops = cv2.blur(drops, (1, 7)) * dice.uniform(60, 140)
    return cv2.resize(drops, (columns, rows), interpolation=cv2.INTER_LINEAR)


def _sensor(image: np.ndarray, weather: Weather, dice: Dice) -> np.ndarray:
    """Adds noise of triangular distribution and cuts off fractions, to uint8."""
    import cv2

    rows, columns = image.shape[:2]
    grains = dice.bytes(2, rows, columns, 3)
    noise = cv2.subtract(grains[0], grains[1], dtype=cv2.CV_32F)
    return cv2.scaleAdd(noise, weather.noise / 104.0, image).clip(0, 255).astype(np.uint8)


def _curves(weather: Weather) -> np.ndarray:
    """(1, 256, 3) uint8: exposure, white balance and gamma."""
    ramp = np.linspace(0, 1, 256)[:, None]
    values = 255 * (ramp**weather.gamma) * weather.exposure * weather.tint
    return np.clip(values, 0, 255).astype(np.uint8)[None]
