"""Light and air of a scene: what sun, sky and haze do to a colour."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from segkd.synthetic.scenes.dice import Colour, Dice

KINDS = {"sun": 0.36, "overcast": 0.24, "dusk": 0.12, "night": 0.1, "fog": 0.08, "rain": 0.1}
_SKIES: dict[str, list[tuple[Colour, Colour]]] = {  # zenith, horizon
    "sun": [((92, 142, 212), (188, 208, 228)), ((60, 110, 190), (205, 215, 222))],
    "overcast": [((168, 172, 178), (206, 208, 210)), ((140, 146, 154), (190, 194, 198))],
    "dusk": [((88, 92, 142), (232, 172, 130)), ((120, 108, 130), (240, 196, 140))],
    "night": [((12, 14, 30), (48, 44, 58)), ((22, 24, 34), (66, 58, 56))],
    "fog": [((188, 192, 196), (204, 206, 208)), ((170, 172, 176), (196, 196, 194))],
    "rain": [((116, 122, 130), (158, 162, 168)), ((92, 98, 108), (140, 146, 152))],
}


@dataclass(frozen=True)
class Weather:
    """Colours are RGB; lights are factors on a surface's colour.

    Attributes:
        kind: a key of KINDS.
        ambient: (3,) light from the sky.
        sun: (3,) light of the sun on a surface that faces it.
        direction: (3,) unit vector towards the sun.
        visibility: metres after which haze hides two thirds of a colour.
        zenith, haze: (3,) 0 … 255 the sky's colour above and at the horizon.
        clouds: 0 … 1.
        wet: 0 … 1, how much the road mirrors.
        tint: (3,) white balance.
        exposure, gamma: of the camera.
        noise: standard deviation of the sensor, in grey values.
        blur: in thousandths of the image width.
    """

    kind: str
    ambient: np.ndarray
    sun: np.ndarray
    direction: np.ndarray
    visibility: float
    zenith: np.ndarray
    haze: np.ndarray
    clouds: float
    wet: float
    tint: np.ndarray
    exposure: float
    gamma: float
    noise: float
    blur: float

    @classmethod
    def sample(cls, dice: Dice, kinds: Mapping[str, float] = KINDS) -> "Weather":
        """Random weather of one of the kinds, drawn in proportion to their weights."""
        kind = dice.weighted(kinds)
        zenith, haze = dice.pick(_SKIES[kind])
        ambient, sun = _lights(kind, dice)
        height = dice.uniform(0.12, 0.3) if kind == "dusk" else dice.uniform(0.35, 1.1)
        side = dice.uniform(0, 2 * math.pi)
        flat = math.cos(height)
        wet = {"rain": dice.uniform(0.25, 0.6), "night": dice.pick((0.0, 0.35))}.get(kind, 0.0)
        return cls(
            kind=kind,
            ambient=ambient,
            sun=sun,
            direction=np.array(
                (flat * math.sin(side), math.sin(height), flat * math.cos(side)),
            ),
            visibility=_visibility(kind, dice),
            zenith=np.array(zenith) + dice.uniform(-12, 12),
            haze=np.array(haze) + dice.uniform(-12, 12),
            clouds=dice.uniform(0.0, 1.0),
            wet=wet,
            tint=np.array([dice.uniform(0.93, 1.07) for _ in range(3)]),
            exposure=dice.uniform(0.82, 1.22),
            gamma=dice.uniform(0.85, 1.18),
            noise=dice.uniform(3.0, 8.0) if kind == "night" else dice.uniform(0.8, 5.0),
            blur=dice.pick((0.0, 0.0, 1.2, 2.2, 3.0)),
        )

    @property
    def dark(self) -> bool:
        """Lamps and windows are lit."""
        return self.kind in ("night", "dusk")

    def lit(self, colours: np.ndarray, normals: np.ndarray, glow: np.ndarray) -> np.ndarray:
        """Colours of surfaces in the light of the scene.

        Args:
            colours: (M, 3) in white light.
            normals: (M, 3) world normals; a zero row is lit as an average direction.
            glow: (M,) 0 … 1, light that the surfaces emit.

        Returns:
            (M, 3), not clipped.
        """
        facing = np.maximum(normals @ self.direction, 0.0)
        facing[~normals.any(1)] = 0.45
        light = self.ambient + facing[:, None] * self.sun
        return colours * np.maximum(light, 1.15 * glow[:, None])

    def hazy(self, colours: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """Colours (H, W, 3) as seen through the haze, ``depth`` (H, W) metres away."""
        veil = (1.0 - np.exp(-depth / self.visibility))[..., None].astype(colours.dtype)
        return colours + veil * (self.haze.astype(colours.dtype) - colours)


def _lights(kind: str, dice: Dice) -> tuple[np.ndarray, np.ndarray]:
    if kind == "sun":
        sky, sun = dice.uniform(0.5, 0.68), dice.uniform(0.45, 0.7)
        return sky * np.array((0.94, 0.98, 1.06)), sun * np.array((1.05, 1.0, 0.9))
    if kind == "dusk":
        sky, sun = dice.uniform(0.42, 0.6), dice.uniform(0.25, 0.55)
        return sky * np.array((0.96, 0.94, 1.06)), sun * np.array((1.2, 0.92, 0.68))
    if kind == "night":
        warm = dice.uniform(0.85, 1.2)
        return dice.uniform(0.34, 0.5) * np.array((warm, 0.96, 2.0 - warm)), np.zeros(3)
    sky = dice.uniform(0.72, 0.95)
    return sky * np.array((0.98, 1.0, 1.02)), dice.uniform(0.05, 0.15) * np.ones(3)


def _visibility(kind: str, dice: Dice) -> float:
    if kind == "fog":
        return dice.uniform(28.0, 90.0)
    return dice.uniform(120.0, 300.0) if kind == "rain" else dice.uniform(250.0, 1500.0)
