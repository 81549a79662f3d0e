"""The course of a road, and the camera above it.

Places on a road are (side, z): metres to the right of its middle, and ahead.
"""

import functools
from dataclasses import dataclass

import numpy as np

from segkd.synthetic.scenes.camera import Camera
from segkd.synthetic.scenes.dice import Dice

REACH = 400.0  # metres of road that are tabulated
_NEAREST = 0.1  # metres; the nearest ground
_STEP = 0.25  # metres between tabulated depths


@dataclass(frozen=True)
class Course:
    """The middle of a road in world axes, tabulated over depth.

    Attributes:
        z: (n,) depths, evenly spaced from 0.
        x: (n,) metres to the right.
        rise: (n,) metres above the ground under the camera.
        slope: (n,) dx/dz.
    """

    z: np.ndarray
    x: np.ndarray
    rise: np.ndarray
    slope: np.ndarray

    @classmethod
    def sample(
        cls, dice: Dice, *, ego: float, bend: float, hilly: bool, turn: float | None = None
    ) -> "Course":
        """A road whose middle passes ``ego`` metres left of the camera.

        Args:
            dice: source of all choices.
            ego: metres.
            bend: largest curvature, 1/m.
            hilly: whether the road rises and falls.
            turn: dx/dz of the road under the camera; None: a random one.
        """
        z = np.arange(0.0, REACH + _STEP, _STEP)
        if turn is None:
            turn = dice.uniform(-0.035, 0.035) if dice.chance(0.75) else dice.uniform(-0.1, 0.1)
        slope = turn + running_integral(_curvature(z, bend, dice), _STEP)
        rise = np.zeros_like(z)
        if hilly:
            rise = running_integral(running_integral(_steepening(z, dice), _STEP), _STEP)
        return cls(z, running_integral(slope, _STEP) - ego, rise, slope)

    def across(self, z: float | np.ndarray) -> np.ndarray:
        """World X of the road's middle in metres at depths z, of their shape."""
        return np.interp(z, self.z, self.x)

    def height(self, z: float | np.ndarray) -> np.ndarray:
        """Metres above the ground under the camera at depths z, of their shape."""
        return np.interp(z, self.z, self.rise)

    def lean(self, z: float | np.ndarray) -> np.ndarray:
        """dx/dz at depths z, of their shape."""
        return np.interp(z, self.z, self.slope)


def running_integral(values: np.ndarray, step: float) -> np.ndarray:
    """Running integral (n,) of values (n,) in places ``step`` apart, by the trapezoidal rule."""
    return np.concatenate([[0.0], np.cumsum(values[1:] + values[:-1]) * (step / 2)])


def _curvature(z: np.ndarray, bend: float, dice: Dice) -> np.ndarray:
    """1/m along z: a first bend, then another or none, and straight in the far distance."""
    first = dice.uniform(0.55, 1.0) * bend * dice.pick((-1, 1))
    second = dice.pick((first, first, 0.0, -0.6 * first))
    start, change = dice.uniform(-30, 25), dice.uniform(45, 120)
    knots = (start - 1, start + 15, change, change + 30, 150, 190)
    return np.interp(z, knots, (0.0 if start > 0 else first, first, first, second, second, 0.0))


def _steepening(z: np.ndarray, dice: Dice) -> np.ndarray:
    """Change of the grade per metre: a crest, a dip, or one after the other."""
    grade = dice.uniform(0.01, 0.055) * dice.pick((-1, 1))
    start, length = dice.uniform(10, 110), dice.uniform(40, 120)
    back = dice.pick((0.0, -1.0, -1.6))
    knots = (start, start + 5, start + length, start + length + 5)
    change = np.interp(z, knots, (0.0, grade / length, grade / length, 0.0))
    later = [knot + length + 5 for knot in knots]
    return change + np.interp(z, later, (0.0, back * grade / length, back * grade / length, 0.0))


@dataclass(frozen=True)
class RoadCamera(Camera):
    """A camera over ground that rises and falls with a course.

    Attributes:
        course: of the road.
        squash: aspect ratio of a pixel, height by width; above 1 where a taller recording was
            squeezed into this format.
    """

    course: Course
    squash: float

    @classmethod
    def over(cls, course: Course, dice: Dice) -> "RoadCamera":
        """A dashboard camera: from wide-angle to the field of highway recordings."""
        height = dice.uniform(1.15, 1.75) if dice.chance(0.85) else dice.uniform(1.75, 2.4)
        squash = dice.uniform(1.2, 1.65) if dice.chance(0.3) else dice.uniform(0.95, 1.1)
        focal = dice.uniform(0.62, 1.0) if dice.chance(0.65) else dice.uniform(1.0, 1.3)
        horizon = dice.uniform(0.28, 0.52) if dice.chance(0.55) else dice.uniform(0.5, 0.67)
        return cls(focal, height, horizon, course, squash)

    def project(self, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """As ``Camera.project``; heights (P, 3) are above the road's surface."""
        lifted = points.copy()
        lifted[:, 1] = points[:, 1] + self.course.height(points[:, 2])
        lifted[:, 1] = self.height - (self.height - lifted[:, 1]) / self.squash
        return super().project(lifted, size)

    def rows(self, z: np.ndarray) -> np.ndarray:
        """Where the surface at depths z (n,) appears: (n,) image widths below the horizon."""
        return self.focal / self.squash * (self.height - self.course.height(z)) / z

    @functools.cached_property
    def _seen(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Depths (n,), where they appear as ``rows``, and whether they are visible (n,) bool."""
        z = np.geomspace(_NEAREST, REACH, 1800)
        below = self.rows(z)
        return z, below, np.append(True, below[1:] < np.minimum.accumulate(below)[:-1])

    @functools.cached_property
    def crest(self) -> float:
        """Depth in metres at which the road first drops out of sight."""
        z, _, clear = self._seen
        return float(z[np.argmin(clear)]) if not clear.all() else REACH

    @functools.cached_property
    def top(self) -> float:
        """The highest visible ground, in image widths below the horizon."""
        return float(self._seen[1].min())

    def depth(self, below: np.ndarray) -> np.ndarray:
        """Depth (n,) in metres of the surface that appears as ``rows`` (n,) do."""
        z, places, clear = self._seen
        return np.interp(below, places[clear][::-1], z[clear][::-1])

    def hidden(self, z: float) -> bool:
        """Whether nearer ground hides the surface at this depth."""
        if z <= self.crest:
            return False
        depths, places, _ = self._seen
        nearer = places[: np.searchsorted(depths, z)]
        return bool(nearer.min() < self.rows(np.array([z]))[0] - 2e-3)
